"""The library: documents, and the originals they were made of; collections come from beside.

Everything is scoped to the caller: what somebody may not see is not there for them. A document
and the job that will process it come into being in one transaction; a deletion is one too.
"""

import asyncio
import hashlib
import json
import mimetypes
from typing import Any, TypeVar
from urllib.parse import quote, unquote
from uuid import UUID

from sqlalchemy import or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from app.access import Caller
from app.config import Settings
from app.db.blobs import drop_unused_blobs, read_blob, store_blob
from app.db.collection_settings import CollectionSettings
from app.db.collections import Removed, enter_collection
from app.db.documents import delete_document, lock_document_at, set_status
from app.db.idempotency import keep_reply, take_key
from app.db.models import Collection, Document
from app.db.session import Sessions
from app.db.transactions import in_transaction
from app.documents.collections import Collections, ModelIsHere
from app.documents.contents import check_content
from app.documents.records import (
    Accepted,
    DocumentPage,
    DocumentRecord,
    EmbedderIdentity,
    Excerpt,
    OriginalFile,
    Upload,
    checked_groups,
    checked_idempotency_key,
    checked_metadata,
    plain_filename,
    read_cursor,
    write_cursor,
)
from app.documents.visibility import DOCUMENTS, may_see, parsed_text, visible
from app.errors import BodyTooLarge, Conflict, Forbidden, InvalidInput, NotFound
from app.failpoints import reach
from app.jobs import Jobs

UPLOAD_ROOT = "upload:///"
UNKNOWN_MEDIA_TYPE = "application/octet-stream"

Found = TypeVar("Found")


class Library(Collections):
    def __init__(
        self,
        sessions: Sessions,
        jobs: Jobs,
        settings: Settings,
        embedder: EmbedderIdentity,
        *,
        location: str | None = None,
        model_is_here: ModelIsHere | None = None,
    ) -> None:
        super().__init__(sessions, embedder, location=location, model_is_here=model_is_here)
        self._jobs = jobs
        self._settings = settings

    # --- uploads ----------------------------------------------------------------------------------

    async def register_upload(
        self, caller: Caller, upload: Upload, *, idempotency_key: str | None = None
    ) -> Accepted:
        """Keep the file and queue it for processing; both or nothing.

        A file of the same name in the same collection is replaced, and goes on serving until the
        new one is ready. With an idempotency key, a repeat of the same request gets the first
        one's reply and changes nothing. Raises InvalidInput, BodyTooLarge, UnsupportedMedia,
        NotFound, Forbidden, Conflict or IdempotencyMismatch.
        """
        filename = plain_filename(upload.filename)
        metadata = checked_metadata(upload.metadata)
        groups = checked_groups(upload.groups)
        if idempotency_key is not None:
            checked_idempotency_key(idempotency_key)
        if caller.groups is not None and not caller.groups.issuperset(groups):
            raise Forbidden("This key may give documents to its own groups only.")
        if not upload.content:
            raise InvalidInput("The file is empty.", hint="Send a file that holds something.")
        if len(upload.content) > self._settings.max_upload_bytes:
            raise BodyTooLarge(
                f"The file has {len(upload.content)} bytes; "
                f"{self._settings.max_upload_bytes} are allowed."
            )
        reach("upload.body_read")
        check_content(filename, upload.content, upload.media_type)
        sha256 = await asyncio.to_thread(_sha256, upload.content)
        request = [upload.collection, filename, sha256.hex(), metadata, groups, upload.priority]
        request_digest = _sha256(json.dumps(request, sort_keys=True).encode())

        async def work(connection: AsyncConnection) -> Accepted:
            if idempotency_key is not None:
                reply = await take_key(
                    connection, caller.tenant_id, idempotency_key, request_digest
                )
                if reply is not None:
                    return Accepted(UUID(reply["document_id"]), reply["job_id"], reply["status"])
            accepted = await self._register(
                connection, caller, upload, filename, sha256, metadata, groups
            )
            if idempotency_key is not None:
                await keep_reply(
                    connection,
                    caller.tenant_id,
                    idempotency_key,
                    {
                        "document_id": str(accepted.document_id),
                        "job_id": accepted.job_id,
                        "status": accepted.status,
                    },
                )
            return accepted

        accepted = await in_transaction(self._begin, work)
        reach("upload.committed")
        return accepted

    async def _register(
        self,
        connection: AsyncConnection,
        caller: Caller,
        upload: Upload,
        filename: str,
        sha256: bytes,
        metadata: dict[str, Any],
        groups: list[str],
    ) -> Accepted:
        collection = await self._collection_for_upload(connection, caller, upload.collection)
        await enter_collection(connection, collection.id)
        media_type = mimetypes.guess_type(filename)[0] or UNKNOWN_MEDIA_TYPE
        document, is_new = await lock_document_at(
            connection,
            tenant_id=caller.tenant_id,
            collection_id=collection.id,
            uri=UPLOAD_ROOT + quote(filename),
            title=filename,
            media_type=media_type,
        )
        if not is_new and not may_see(caller, document.groups):
            raise Conflict(
                "There is a document of this name already that this key may not replace.",
                hint="Send the file under another name.",
            )
        await store_blob(connection, caller.tenant_id, sha256, upload.content)
        reach("upload.blob_stored")
        described = {"metadata": metadata, "groups": groups}
        if document.version is None:
            values: dict[str, Any] = {
                "metadata_": metadata,
                "groups": groups,
                "media_type": media_type,
                "pending": None,
            }
        else:
            # The old text goes on being found as it was described.
            values = {"pending": described}
        job_id = await self._jobs.defer_document(connection, document.id, priority=upload.priority)
        reach("upload.job_deferred")
        await set_status(
            connection,
            document.id,
            "queued",
            blob_sha256=sha256,
            size_bytes=len(upload.content),
            claim=None,
            job_id=job_id,
            **values,
        )
        await drop_unused_blobs(connection, caller.tenant_id, [document.blob_sha256])
        reach("upload.before_commit")
        return Accepted(document.id, job_id)

    # --- documents --------------------------------------------------------------------------------

    async def get(self, caller: Caller, document_id: UUID) -> DocumentRecord:
        async def work(connection: AsyncConnection) -> DocumentRecord:
            rows = await connection.execute(
                DOCUMENTS.where(*visible(caller), Document.id == document_id)
            )
            return DocumentRecord(*_found(rows.one_or_none()))

        return await in_transaction(self._begin, work)

    async def content(self, caller: Caller, document_id: UUID) -> OriginalFile:
        """The original, byte for byte.

        Raises NotFound where only its place is known, and Forbidden where personal data is masked
        and the key may not see it.
        """

        async def work(connection: AsyncConnection) -> OriginalFile:
            rows = await connection.execute(
                select(Document.uri, Document.media_type, Document.blob_sha256, Collection.settings)
                .join(Collection, Collection.id == Document.collection_id)
                .where(*visible(caller), Document.id == document_id)
            )
            uri, media_type, sha256, settings = _found(rows.one_or_none())
            policy = CollectionSettings.model_validate(settings).personal_data
            if policy == "mask" and "admin" not in caller.scopes:
                raise Forbidden(
                    "Personal data is masked in this collection, and the original still holds it.",
                    hint="Use a key with the scope `admin`, or read the text by search.",
                )
            content = await read_blob(connection, caller.tenant_id, sha256) if sha256 else None
            if content is None:
                raise NotFound(
                    "The original of this document is not kept: it could not be read, or was refused.",
                    hint="It is still where it came from.",
                )
            return OriginalFile(content, unquote(uri.rsplit("/", 1)[-1]), media_type)

        return await in_transaction(self._begin, work)

    async def excerpt(
        self, caller: Caller, document_id: UUID, *, start: int, end: int
    ) -> Excerpt | None:
        """Characters `start` to `end` of the parsed text; None while no version serves."""

        async def work(connection: AsyncConnection) -> Excerpt | None:
            rows = await connection.execute(
                parsed_text(start, end).where(*visible(caller), Document.id == document_id)
            )
            text, total_chars = _found(rows.one_or_none())
            return Excerpt(text, start, total_chars or 0) if text is not None else None

        return await in_transaction(self._begin, work)

    async def delete(self, caller: Caller, document_id: UUID) -> Removed:
        """Remove text, vectors, postings and original; work in progress on it comes to nothing."""

        async def work(connection: AsyncConnection) -> Removed:
            rows = await connection.execute(
                select(Document.id)
                .join(Collection, Collection.id == Document.collection_id)
                .where(*visible(caller), Document.id == document_id)
            )
            return _found(await delete_document(connection, _found(rows.scalar())))

        removed = await in_transaction(self._begin, work)
        reach("delete.committed")
        return removed

    async def list(
        self,
        caller: Caller,
        *,
        collection: str | None = None,
        status: str | None = None,
        personal_data: bool | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> DocumentPage:
        """A page of the documents that the caller may see, newest first.

        `personal_data` takes those only in which some was found, or none was.
        Raises NotFound for an unknown collection and InvalidInput for a bad limit or cursor.
        """
        if not 1 <= limit <= self._settings.max_limit:
            raise InvalidInput(f"limit must be between 1 and {self._settings.max_limit}.")
        wanted = visible(caller)
        if status is not None:
            wanted.append(Document.status == status)
        if personal_data is not None:
            found = Document.personal_data
            wanted.append(found != {} if personal_data else or_(found.is_(None), found == {}))
        if cursor is not None:
            wanted.append(tuple_(Document.created_at, Document.id) < tuple_(*read_cursor(cursor)))

        async def work(connection: AsyncConnection) -> DocumentPage:
            if collection is not None:
                found = await self._collection(connection, caller, collection)
                wanted.append(Document.collection_id == found.id)
            rows = await connection.execute(
                DOCUMENTS.where(*wanted)
                .order_by(Document.created_at.desc(), Document.id.desc())
                .limit(limit + 1)
            )
            records = [DocumentRecord(*row) for row in rows]
            page = records[:limit]
            more = len(records) > limit
            return DocumentPage(
                page, write_cursor(page[-1].created_at, page[-1].id) if more else None
            )

        return await in_transaction(self._begin, work)


def _found(what: Found | None) -> Found:
    """What a query found; raises NotFound when that is nothing."""
    if what is None:
        raise NotFound("There is no such document.")
    return what


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
