"""Documents: sent, listed, read, deleted."""

import re
from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Form, Header, Query, Response

from app.api.bodies import BodyRoute, read_json
from app.api.collections import removal
from app.api.problems import DOCUMENTED
from app.api.schemas import (
    Accepted,
    DocumentInfo,
    DocumentPage,
    DocumentQuery,
    Removal,
    UploadForm,
)
from app.dependencies import CallerDep, LibraryDep, ResourcesDep
from app.documents.records import DocumentRecord, Upload

router = APIRouter(
    route_class=BodyRoute,
    tags=["documents"],
    responses=DOCUMENTED,
    form_limits={"max_files": 1, "max_fields": 200, "max_part_size": 128 * 1024},
)


@router.post("/api/documents", status_code=202)
async def upload_document(
    form: Annotated[UploadForm, Form(media_type="multipart/form-data")],
    caller: CallerDep,
    resources: ResourcesDep,
    response: Response,
    idempotency_key: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
) -> Accepted:
    """Take a file; it is processed in the background, as `/api/jobs/{job_id}` tells."""
    metadata: Any = read_json(form.metadata) if form.metadata else {}
    # A file is in memory whole while it is stored, so only a few are at a time.
    async with resources.upload_turns:
        accepted = await resources.library.register_upload(
            caller,
            Upload(
                filename=form.file.filename or "",
                content=await form.file.read(),
                collection=form.collection,
                metadata=metadata,
                groups=form.groups,
                media_type=form.file.content_type,
                priority=form.priority,
            ),
            idempotency_key=idempotency_key,
        )
    response.headers["Location"] = f"/api/documents/{accepted.document_id}"
    return Accepted(
        document_id=accepted.document_id, job_id=accepted.job_id, status=accepted.status
    )


@router.get("/api/documents")
async def list_documents(
    query: Annotated[DocumentQuery, Query()], caller: CallerDep, library: LibraryDep
) -> DocumentPage:
    """Newest first, in pages: `next_cursor` leads to the next one."""
    page = await library.list(
        caller,
        collection=query.collection,
        status=query.status,
        personal_data=query.personal_data,
        limit=query.limit,
        cursor=query.cursor,
    )
    return DocumentPage(
        documents=[_document_info(one) for one in page.documents], next_cursor=page.next_cursor
    )


@router.get("/api/documents/{document_id}")
async def read_document(document_id: UUID, caller: CallerDep, library: LibraryDep) -> DocumentInfo:
    return _document_info(await library.get(caller, document_id))


@router.get(
    "/api/documents/{document_id}/content",
    response_class=Response,
    responses={200: {"description": "The original, byte for byte", "content": {"*/*": {}}}},
)
async def read_original(document_id: UUID, caller: CallerDep, library: LibraryDep) -> Response:
    original = await library.content(caller, document_id)
    return Response(
        original.content,
        headers={
            "Content-Type": original.media_type,
            # Somebody else's file must never run as a page of this service.
            "Content-Disposition": _attachment(original.filename),
            "Content-Security-Policy": "default-src 'none'; sandbox",
        },
    )


@router.delete("/api/documents/{document_id}")
async def delete_document(document_id: UUID, caller: CallerDep, library: LibraryDep) -> Removal:
    """Delete text, vectors, postings and original at once."""
    return removal(await library.delete(caller, document_id))


def _attachment(filename: str) -> str:
    """The header's value (RFC 6266): the name as it is, and for those who read no other, in ASCII."""
    plain = re.sub(r'[^ -~]|["\\%]', "_", filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"


def _document_info(record: DocumentRecord) -> DocumentInfo:
    return DocumentInfo(
        id=record.id,
        collection=record.collection,
        title=record.title,
        uri=record.uri,
        media_type=record.media_type,
        size_bytes=record.size_bytes,
        status=record.status,
        reason=record.reason,
        warnings=list(record.warnings),
        chunks=record.chunks,
        pages=record.pages,
        version=record.version,
        metadata=dict(record.metadata),
        groups=list(record.groups),
        job_id=record.job_id,
        created_at=record.created_at,
        updated_at=record.updated_at,
        personal_data=dict(record.personal_data) if record.personal_data is not None else None,
    )
