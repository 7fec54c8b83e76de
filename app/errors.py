"""Every way Footnote says no.

Each class knows its HTTP status, its stable code and a hint that tells the reader what to do.
Services raise these; only `app/api/problems.py` turns them into replies.
"""

from collections.abc import Mapping
from typing import ClassVar


class FootnoteError(Exception):
    """The root of all errors that a user may see.

    `detail` says what happened in this case; `hint` says what to do about it.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Something went wrong inside Footnote"
    default_hint: ClassVar[str] = (
        "Look for the request id in the service's log, then report the problem."
    )

    def __init__(self, detail: str | None = None, *, hint: str | None = None) -> None:
        self.detail = detail or self.title
        self.hint = hint or self.default_hint
        super().__init__(self.detail)

    @property
    def headers(self) -> Mapping[str, str]:
        """What a reply over HTTP adds to its headers."""
        return {}


# --- what the caller sent ------------------------------------------------------------------------


class InvalidInput(FootnoteError):
    status = 422
    code = "invalid_input"
    title = "The request is not valid"
    default_hint = "Correct the named field and send the request again."


class MalformedRequest(FootnoteError):
    status = 400
    code = "malformed_request"
    title = "The request could not be read"
    default_hint = "Send well-formed JSON (or multipart form data) in UTF-8."


class NotFound(FootnoteError):
    status = 404
    code = "not_found"
    title = "There is no such thing here"
    default_hint = "Check the name or id; list what exists first."


class MethodNotAllowed(FootnoteError):
    status = 405
    code = "method_not_allowed"
    title = "This address does not take that method"
    default_hint = "Use a method of the header Allow; /openapi.json lists all."

    def __init__(self, detail: str | None = None, *, allowed: str = "") -> None:
        super().__init__(detail)
        self.allowed = allowed

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Allow": self.allowed}


class RequestTimeout(FootnoteError):
    status = 408
    code = "request_timeout"
    title = "The request body came too slowly"
    default_hint = "Send the request again over a steady connection."

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Connection": "close"}


class Conflict(FootnoteError):
    status = 409
    code = "conflict"
    title = "This clashes with what is already there"
    default_hint = "Read the current state, then decide."


class IdempotencyMismatch(FootnoteError):
    status = 422
    code = "idempotency_mismatch"
    title = "This Idempotency-Key was used for another request"
    default_hint = "Use a new Idempotency-Key for a new request."


class BodyTooLarge(FootnoteError):
    status = 413
    code = "body_too_large"
    title = "The request body is too large"
    default_hint = "Send a smaller file, or raise FOOTNOTE_MAX_UPLOAD_BYTES."


class UnsupportedMedia(FootnoteError):
    status = 415
    code = "unsupported_media_type"
    title = "This kind of content cannot be read"
    default_hint = "Send a supported format whose name and content agree."


# --- who is calling ------------------------------------------------------------------------------


class Unauthenticated(FootnoteError):
    status = 401
    code = "unauthenticated"
    title = "A valid API key is needed"
    default_hint = "Send `Authorization: Bearer fn_…`; make a key with `footnote keys create`."

    @property
    def headers(self) -> Mapping[str, str]:
        return {"WWW-Authenticate": 'Bearer realm="footnote"'}


class Forbidden(FootnoteError):
    status = 403
    code = "forbidden"
    title = "This key may not do that"
    default_hint = "Use a key with the scope that the detail names."


class RateLimited(FootnoteError):
    status = 429
    code = "rate_limited"
    title = "Too many requests"
    default_hint = "Wait for the number of seconds in Retry-After."

    def __init__(
        self, detail: str | None = None, *, hint: str | None = None, retry_after_seconds: int = 1
    ) -> None:
        super().__init__(detail, hint=hint)
        self.retry_after_seconds = retry_after_seconds

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Retry-After": str(self.retry_after_seconds)}


# --- what Footnote depends on --------------------------------------------------------------------


class Unavailable(FootnoteError):
    """A dependency is away or too busy; the same request may succeed later."""

    status = 503
    code = "unavailable"
    title = "A part of the service is away"
    default_hint = "Try again shortly; GET /health says which part."
    retry_after_seconds: int = 5

    def __init__(
        self,
        detail: str | None = None,
        *,
        hint: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(detail, hint=hint)
        if retry_after_seconds is not None:
            self.retry_after_seconds = retry_after_seconds

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Retry-After": str(self.retry_after_seconds)}


class DatabaseUnavailable(Unavailable):
    code = "database_unavailable"
    title = "The database is away"


class EmbeddingUnavailable(Unavailable):
    code = "embedding_unavailable"
    title = "The embedding model is not available"
    default_hint = "Check FOOTNOTE_EMBEDDING_MODEL; `footnote doctor` says more."


class ScanUnavailable(Unavailable):
    """A collection asks for a scan for personal data, and the packages for it are not installed."""

    code = "scan_unavailable"
    title = "Documents cannot be scanned for personal data here"
    default_hint = "Install the packages of the extra: pip install 'footnote[pii]'."


class GenerationUnavailable(Unavailable):
    code = "generation_unavailable"
    title = "No model can answer right now"
    default_hint = "Check that an Ollama server of FOOTNOTE_OLLAMA_URLS runs and has the model."


class BudgetExhausted(GenerationUnavailable):
    """A model that costs money was refused; one that costs nothing may still answer."""

    status = 402
    code = "budget_exhausted"
    title = "The budget of this month is spent"
    default_hint = "Ask a model that costs nothing, or raise the budget: `footnote costs budget`."

    @property
    def headers(self) -> Mapping[str, str]:
        return {}


class Overloaded(Unavailable):
    code = "overloaded"
    title = "The service is at its limit"
    default_hint = "Wait for the number of seconds in Retry-After."


class StorageFull(FootnoteError):
    status = 507
    code = "storage_full"
    title = "There is no space left to store this"
    default_hint = "Free disk space on the database's machine; nothing was stored."


class GenerationInterrupted(FootnoteError):
    """The model's stream broke after its first token; sent as the `error` event of a stream."""

    status = 502
    code = "generation_interrupted"
    title = "The model stopped in the middle of its answer"
    default_hint = "Ask again; the partial answer was not stored."


# --- at start ------------------------------------------------------------------------------------


class StartupError(FootnoteError):
    """Footnote refuses to start; the command prints detail and hint and exits with 2."""

    code = "startup_refused"
    title = "Footnote cannot start"


class DatabaseUnsuitable(StartupError):
    """Reached, but not usable: pgvector too old, or the schema older or newer than the code."""

    code = "database_unsuitable"
    title = "This database cannot be used"


class HomeBusy(StartupError):
    code = "home_busy"
    title = "Another process is using this FOOTNOTE_HOME"


class PortTaken(StartupError):
    code = "port_taken"
    title = "The port is taken"


# --- reading a document --------------------------------------------------------------------------


class DocumentRejected(FootnoteError):
    """A document cannot become passages; `reason` is stored with it and shown to people."""

    status = 422
    code = "document_rejected"
    title = "The document could not be read"
    default_hint = "See the reason; repair or convert the file and ingest it again."

    def __init__(self, reason: str, *, retryable: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retryable = retryable
