"""From any exception to one `application/problem+json` reply (RFC 9457), and never a trace."""

import json
from collections.abc import Sequence
from typing import Any

import psycopg
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from psycopg.errors import UndefinedColumn, UndefinedTable
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.api.schemas import Problem
from app.db.transactions import translated_errors
from app.errors import (
    DatabaseUnavailable,
    FootnoteError,
    InvalidInput,
    MalformedRequest,
    MethodNotAllowed,
    NotFound,
    Unavailable,
)
from app.telemetry import request_id

MEDIA_TYPE = "application/problem+json"

log = structlog.get_logger(__name__)

DOCUMENTED: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Problem, "content": {MEDIA_TYPE: {}}, "description": "What was wrong"},
    "5XX": {"model": Problem, "content": {MEDIA_TYPE: {}}, "description": "What failed"},
}
"""For the routes' documentation."""


class InvalidFields(InvalidInput):
    """The fields that are wrong, each with what is wrong about it; values are not repeated."""

    def __init__(self, fields: Sequence[tuple[str, str]], *, hint: str | None = None) -> None:
        super().__init__("; ".join(f"{name}: {message}" for name, message in fields), hint=hint)
        self.fields = fields


def to_footnote_error(error: Exception) -> FootnoteError:
    """What the client may know of the error. An unknown one tells nothing but "inside Footnote"."""
    match error:
        case FootnoteError():
            return error
        case RequestValidationError():
            return _of_validation(error)
        case HTTPException():
            # FastAPI wraps what fails while a body is read.
            if isinstance(error.__cause__, FootnoteError):
                return error.__cause__
            return _of_status(error)
        case SQLAlchemyError() | psycopg.Error():
            return _of_database(error)
        case TimeoutError():
            return Unavailable("A part of the service did not answer in time.")
        case _:
            return FootnoteError()


def problem(error: FootnoteError) -> dict[str, Any]:
    """The body: also what the `error` event of a stream carries."""
    body: dict[str, Any] = {
        "type": f"urn:footnote:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "hint": error.hint,
        "request_id": request_id.get(),
    }
    if isinstance(error, InvalidFields):
        body["fields"] = [{"field": name, "message": message} for name, message in error.fields]
    return body


def problem_response(error: FootnoteError) -> Response:
    return Response(
        # Escaped to ASCII, so that even a text that is no valid Unicode can be reported.
        json.dumps(problem(error)).encode("ascii"),
        status_code=error.status,
        headers={"Cache-Control": "no-store", **error.headers},
        media_type=MEDIA_TYPE,
    )


def note(error: Exception, told: FootnoteError) -> None:
    """Log a failure of ours once; what the caller did wrong stands in the access log already."""
    if told.status == FootnoteError.status:
        log.error("request failed", exc_info=error)
    elif told.status > FootnoteError.status:
        log.warning("request refused", code=told.code, detail=told.detail, cause=repr(error))


def install(app: FastAPI) -> None:
    """Let every expected exception inside the routes become its problem.

    What is not expected passes on to the outermost middleware, which does the same for it.
    """
    for kind in (FootnoteError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _reply)


async def _reply(_: Request, error: Exception) -> Response:
    told = to_footnote_error(error)
    note(error, told)
    return problem_response(told)


def _of_status(error: HTTPException) -> FootnoteError:
    match error.status_code:
        case 400:
            return MalformedRequest(error.detail)
        case 404:
            return NotFound(
                "There is nothing at this address.", hint="GET /openapi.json lists every address."
            )
        case 405:
            return MethodNotAllowed(allowed=(error.headers or {}).get("Allow", ""))
        case _:
            return FootnoteError()


def _of_validation(error: RequestValidationError) -> FootnoteError:
    fields: list[tuple[str, str]] = []
    for item in error.errors():
        if item["type"] == "json_invalid":
            return MalformedRequest("The body is not valid JSON.")
        place = [str(part) for part in item["loc"]]
        name = ".".join(place[1:]) or place[0]
        fields.append((name, str(item["msg"]).removeprefix("Value error, ")))
    return InvalidFields(fields)


def _of_database(error: Exception) -> FootnoteError:
    try:
        with translated_errors():
            raise error
    except FootnoteError as told:
        return told
    except Exception as unknown:  # noqa: BLE001 - whatever it is, it becomes a problem
        cause = unknown.orig if isinstance(unknown, DBAPIError) else unknown
    if isinstance(cause, psycopg.DataError):
        return InvalidInput("The request holds a value that cannot be stored, such as a NUL.")
    if isinstance(cause, UndefinedTable | UndefinedColumn):
        return DatabaseUnavailable(
            "The database does not have the schema of this version.", hint="Run `footnote migrate`."
        )
    return FootnoteError()
