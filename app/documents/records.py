"""The library's words, and the rules for what a caller may hand in."""

import base64
import binascii
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, cast
from uuid import UUID

from app.db.collection_settings import DEFAULTS, CollectionSettings
from app.db.models.documents import DocumentStatus
from app.db.queue import Priority
from app.errors import InvalidInput

MAX_NAME_CHARS = 200
MAX_METADATA_CHARS = 64 * 1024
MAX_NUMBER = 10**300
MAX_GROUPS = 100
MAX_GROUP_CHARS = 100
MAX_IDEMPOTENCY_KEY_CHARS = 255

_DRIVE = re.compile(r"^[A-Za-z]:")
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,16}$")
# Characters that change how the text around them is shown: a name must not disguise itself.
_DIRECTION_MARKS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class EmbedderIdentity(Protocol):
    """Which model the service embeds with; any Embedder is one."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def dimensions(self) -> int: ...


@dataclass(frozen=True, slots=True)
class CollectionRecord:
    """`documents` counts those that can be found; `chunks` are their passages."""

    name: str
    embedding_model: str
    generation: int
    documents: int
    chunks: int
    created_at: datetime
    settings: CollectionSettings = DEFAULTS


@dataclass(frozen=True, slots=True)
class PersonalDataCount:
    """In how many documents there is some, and how much of it was found in them."""

    documents: int
    found: int


@dataclass(frozen=True, slots=True)
class CollectionOverview(CollectionRecord):
    """`outdated` documents serve a version that is yet to be rebuilt; `personal_data` is by kind."""

    outdated: int = 0
    personal_data: Mapping[str, PersonalDataCount] = field(
        default_factory=dict[str, PersonalDataCount]
    )


@dataclass(frozen=True, slots=True)
class Upload:
    """A file as a caller sent it. `metadata` must be a JSON object; no groups: the whole tenant.

    `media_type` is what the caller declared it to be, if anything.
    """

    filename: str
    content: bytes
    collection: str = "default"
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    groups: Sequence[str] = ()
    media_type: str | None = None
    priority: Priority = "interactive"


@dataclass(frozen=True, slots=True)
class Accepted:
    document_id: UUID
    job_id: int
    status: DocumentStatus = "queued"


@dataclass(frozen=True, slots=True)
class DocumentRecord:
    """`chunks`, `pages`, `version` and `warnings` are those of the version that serves.

    `updated_at` is when `status` last changed. `personal_data` counts what a scan found, by kind.
    """

    id: UUID
    collection: str
    title: str
    uri: str
    media_type: str
    size_bytes: int
    status: DocumentStatus
    reason: str | None
    metadata: Mapping[str, Any]
    groups: Sequence[str]
    job_id: int | None
    created_at: datetime
    updated_at: datetime
    chunks: int
    pages: int | None
    version: int | None
    warnings: Sequence[str]
    personal_data: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class DocumentPage:
    """Newest first. `next_cursor` continues after the last one, however many came meanwhile."""

    documents: Sequence[DocumentRecord]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class OriginalFile:
    content: bytes
    filename: str
    media_type: str


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A piece of a document's parsed text, which begins at character `start` of `total_chars`."""

    text: str
    start: int
    total_chars: int


def plain_filename(name: str) -> str:
    """A name without path, control characters or disguises; raises InvalidInput if none is left."""
    last = _DRIVE.sub("", name.replace("\\", "/").rsplit("/", 1)[-1])
    kept = "".join(
        character
        for character in unicodedata.normalize("NFC", last)
        if unicodedata.category(character) not in ("Cc", "Cs", "Cn")
        and character not in _DIRECTION_MARKS
    ).strip()
    if not kept.strip("."):
        raise InvalidInput("The file has no usable name.", hint="Send the file with a name.")
    if len(kept) > MAX_NAME_CHARS:
        suffix = match.group() if (match := _SUFFIX.search(kept)) else ""
        kept = kept[: MAX_NAME_CHARS - len(suffix)] + suffix
    return kept


def checked_metadata(metadata: object) -> dict[str, Any]:
    """The metadata itself; raises InvalidInput unless PostgreSQL can store it as a JSON object."""
    if not isinstance(metadata, Mapping):
        raise InvalidInput("metadata must be a JSON object.")
    _check_json(cast("object", metadata), depth=0)
    checked = dict(cast("Mapping[str, Any]", metadata))
    if len(json.dumps(checked)) > MAX_METADATA_CHARS:
        raise InvalidInput(f"metadata must not be longer than {MAX_METADATA_CHARS} characters.")
    return checked


def _check_json(value: object, *, depth: int) -> None:
    if depth > 20:
        raise InvalidInput("metadata is nested too deeply.")
    match value:
        case None | bool():
            pass
        case int() | float() if abs(value) < MAX_NUMBER:
            pass
        case str():
            _check_text("metadata", value)
        case Mapping():
            for key, item in cast("Mapping[object, object]", value).items():
                if not isinstance(key, str):
                    raise InvalidInput("metadata must have names that are strings.")
                _check_text("metadata", key)
                _check_json(item, depth=depth + 1)
        case list() | tuple():
            for item in cast("Sequence[object]", value):
                _check_json(item, depth=depth + 1)
        case _:
            raise InvalidInput("metadata must hold JSON values, with numbers below 1e300.")


def checked_groups(groups: object) -> list[str]:
    """The groups, sorted, each once; raises InvalidInput unless they are a list of names."""
    if isinstance(groups, str) or not isinstance(groups, Sequence):
        raise InvalidInput("groups must be a list of names.")
    names: set[str] = set()
    for name in cast("Sequence[object]", groups):
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_GROUP_CHARS:
            raise InvalidInput(f"Each of groups must have 1 to {MAX_GROUP_CHARS} characters.")
        names.add(_check_text("groups", name))
    if len(names) > MAX_GROUPS:
        raise InvalidInput(f"A document can have at most {MAX_GROUPS} groups.")
    return sorted(names)


def checked_idempotency_key(key: str) -> str:
    if not 1 <= len(key) <= MAX_IDEMPOTENCY_KEY_CHARS or not key.isprintable():
        raise InvalidInput(
            f"An Idempotency-Key has 1 to {MAX_IDEMPOTENCY_KEY_CHARS} printable characters."
        )
    return key


def _check_text(name: str, value: str) -> str:
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidInput(f"{name} must not hold NUL characters or lone surrogates.")
    return value


def write_cursor(created_at: datetime, document_id: UUID) -> str:
    place = json.dumps([created_at.isoformat(), str(document_id)])
    return base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[datetime, UUID]:
    """Raises InvalidInput for what `write_cursor` did not write."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        created_at, document_id = json.loads(base64.b64decode(padded, b"-_", validate=True))
        moment = datetime.fromisoformat(created_at)
        if moment.tzinfo is None:
            raise ValueError("a moment without its zone")
        return moment, UUID(document_id)
    except (ValueError, TypeError, AttributeError, binascii.Error) as error:
        raise InvalidInput(
            "cursor is not one that a listing gave.", hint="Begin again without a cursor."
        ) from error
