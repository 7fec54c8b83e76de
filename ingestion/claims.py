"""The worker's right to write a document, and what it does with it: a late writer changes nothing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.collection_settings import CollectionSettings
from app.db.collections import enter_collection
from app.db.documents import StoredDocument, lock_document, set_status
from app.errors import NotFound
from app.failpoints import reach
from ingestion.writing import NewVersion, Shelf, enter_with, put_version, refuse

UPLOADS = "upload:"
"""How the URIs of documents begin that somebody sent, with metadata of his own."""


NOT_KEPT = "its original is not kept; upload it again"


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's right to write the next version of a document, of this original.

    It is second-hand when an attempt before it ended without a word, as a dead worker's does.
    """

    id: UUID
    document_id: UUID
    shelf: Shelf
    pipeline_digest: str
    sha256: bytes
    filename: str
    is_second_hand: bool
    content: bytes = field(repr=False)
    given: Mapping[str, Any] = field(default_factory=dict[str, Any])


async def claim_document(
    connection: AsyncConnection,
    document_id: UUID,
    digest_for: Callable[[CollectionSettings], str],
) -> Claim | None:
    """The right to process the document, with its original, taken from whoever had it before.

    None when there is nothing to do: it is gone, was cancelled or given up, or what is wanted
    serves already.
    """
    document = await lock_document(connection, document_id)
    if document is None or document.status == "failed":
        return None
    if document.blob_sha256 is None:
        await set_status(connection, document_id, "failed", NOT_KEPT, claim=None)
        return None
    found = await connection.execute(
        _SHELF,
        {
            "collection_id": document.collection_id,
            "tenant_id": document.tenant_id,
            "sha256": document.blob_sha256,
        },
    )
    model_id, settings, content = found.one()
    own = CollectionSettings.model_validate(settings)
    pipeline_digest = digest_for(own)
    if document.serves(document.blob_sha256, pipeline_digest) and document.pending is None:
        await set_status(
            connection, document_id, "ready", claim=None, pipeline_digest=pipeline_digest
        )
        return None
    if content is None:
        return None
    claim_id = uuid4()
    await set_status(connection, document_id, "processing", claim=claim_id)
    reach("claim.before_commit")
    return Claim(
        id=claim_id,
        document_id=document_id,
        shelf=Shelf(document.tenant_id, document.collection_id, model_id, own),
        pipeline_digest=pipeline_digest,
        sha256=document.blob_sha256,
        filename=unquote(document.uri.rsplit("/", 1)[-1]),
        is_second_hand=document.claim is not None,
        content=content,
        given=(document.pending or {}).get("metadata", document.metadata),
    )


async def write_claimed(connection: AsyncConnection, claim: Claim, version: NewVersion) -> bool:
    """Make the version serve; False, and nothing written, when the claim is no longer good.

    Raises ModelSwitched when its vectors are of another model than the one that serves.
    """
    try:
        await enter_with(connection, claim.shelf.collection_id, version)
    except NotFound:
        return False
    document = await _claimed(connection, claim)
    if document is None:
        return False
    # What somebody gave counts more than what is read; what was read before counts less.
    read, given = version.parsed.metadata, version.given
    is_upload = document.uri.startswith(UPLOADS)
    await put_version(
        connection,
        claim.shelf,
        document,
        version,
        metadata_={**read, **given} if is_upload else {**given, **read},
        groups=(document.pending or {}).get("groups", document.groups),
        pending=None,
    )
    return True


async def release_claim(connection: AsyncConnection, claim: Claim, reason: str | None) -> None:
    """Give the document back to the queue after an attempt that did not finish."""
    if await _claimed(connection, claim):
        await set_status(connection, claim.document_id, "queued", reason, claim=None)


async def fail_claimed(
    connection: AsyncConnection,
    claim: Claim,
    reason: str,
    refused: Mapping[str, int] | None = None,
) -> bool:
    """Note why the document failed; False when that is no longer the claim's to say.

    `refused` counts the personal data for which it was refused, see `refuse`.
    """
    if refused is not None:
        try:
            await enter_collection(connection, claim.shelf.collection_id)
        except NotFound:
            return False
    document = await _claimed(connection, claim)
    if document is None:
        return False
    if refused is not None:
        await refuse(connection, document, reason, refused, claim.pipeline_digest)
        return True
    await set_status(
        connection,
        claim.document_id,
        "failed",
        reason,
        claim=None,
        pipeline_digest=claim.pipeline_digest,
    )
    return True


async def _claimed(connection: AsyncConnection, claim: Claim) -> StoredDocument | None:
    """The document, locked, if the claim is still the latest and its original still wanted."""
    document = await lock_document(connection, claim.document_id)
    if document is None or document.claim != claim.id or document.blob_sha256 != claim.sha256:
        return None
    return document


_SHELF = text(
    """
    SELECT c.embedding_model_id, c.settings, b.content
    FROM collections AS c
    LEFT JOIN blobs AS b ON b.tenant_id = :tenant_id AND b.sha256 = :sha256
    WHERE c.id = :collection_id
    """
)
