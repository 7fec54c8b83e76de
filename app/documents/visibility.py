"""Which collections and documents a caller may see: every query of the library asks here."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Select, func, or_, select

from app.access import Caller
from app.db.models import Collection, Document, DocumentVersion


def may_enter(caller: Caller, collection: str) -> bool:
    return caller.collections is None or collection in caller.collections


def may_see(caller: Caller, groups: Sequence[str]) -> bool:
    return caller.groups is None or not groups or not caller.groups.isdisjoint(groups)


def visible(caller: Caller) -> list[ColumnElement[bool]]:
    """The conditions that every query for documents carries."""
    return [Document.tenant_id == caller.tenant_id, *_limits(caller)]


def countable(caller: Caller) -> list[ColumnElement[bool]]:
    """The same for queries that only count: where no group limits them, an index is enough."""
    return [Collection.tenant_id == caller.tenant_id, *_limits(caller)]


def _limits(caller: Caller) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if caller.collections is not None:
        conditions.append(Collection.name.in_(caller.collections))
    if caller.groups is not None:
        conditions.append(
            or_(
                func.cardinality(Document.groups) == 0,
                Document.groups.bool_op("&&")(sorted(caller.groups)),
            )
        )
    return conditions


# In the order of DocumentRecord's fields.
DOCUMENTS = (
    select(
        Document.id,
        Collection.name,
        Document.title,
        Document.uri,
        Document.media_type,
        Document.size_bytes,
        Document.status,
        Document.reason,
        Document.metadata_,
        Document.groups,
        Document.job_id,
        Document.created_at,
        Document.status_at,
        func.coalesce(DocumentVersion.chunks_count, 0),
        DocumentVersion.pages_count,
        DocumentVersion.number,
        func.coalesce(DocumentVersion.warnings, []),
        Document.personal_data,
    )
    .join(Collection, Collection.id == Document.collection_id)
    .outerjoin(DocumentVersion, DocumentVersion.id == Document.current_version_id)
)


def parsed_text(start: int, end: int) -> Select[str | None, int | None]:
    """Characters `start` to `end` of each document's parsed text, and how many there are."""
    return (
        select(
            func.substr(DocumentVersion.text, start + 1, end - start),
            func.length(DocumentVersion.text),
        )
        .select_from(Document)
        .join(Collection, Collection.id == Document.collection_id)
        .outerjoin(DocumentVersion, DocumentVersion.id == Document.current_version_id)
    )
