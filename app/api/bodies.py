"""How request bodies are read: the right media type or 415, strict JSON or 400."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.params import Form
from fastapi.routing import APIRoute
from pydantic_core import from_json

from app.errors import MalformedRequest, UnsupportedMedia

_JSON = "application/json"
_FORM = "multipart/form-data"


def read_json(content: bytes | str) -> Any:
    """The value of a JSON text; raises MalformedRequest, also for NaN and for lone surrogates."""
    try:
        return from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise MalformedRequest(f"This is not valid JSON: {error}.") from None


class _StrictRequest(Request):
    async def json(self) -> Any:
        return read_json(await self.body())


class BodyRoute(APIRoute):
    """A route that looks at the body's media type before it reads the body."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        expected = _FORM if isinstance(self.body_field.field_info, Form) else _JSON

        async def check_then_handle(request: Request) -> Response:
            media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if media_type != expected:
                raise UnsupportedMedia(
                    f"This route takes {expected}, not {media_type or 'a body without a type'}.",
                    hint=f"Send the header Content-Type: {expected}.",
                )
            return await handle(_StrictRequest(request.scope, request.receive))

        return check_then_handle
