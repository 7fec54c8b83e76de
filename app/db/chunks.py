"""The SQL of passages: written by the thousand, so by COPY."""

from collections.abc import Iterable
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection


class ChunkRow(NamedTuple):
    """A row of `chunks`, in the order of the COPY."""

    id: int
    tenant_id: int
    collection_id: int
    document_id: UUID
    version_id: int
    ordinal: int
    text: str
    context: str
    heading: list[str]
    page: int | None
    start_char: int
    end_char: int
    tokens: int
    content_hash: bytes
    page_breaks: list[int]


_COLUMN_TYPES = [
    *("int8", "int4", "int4", "uuid", "int8", "int4", "text", "text", "text[]"),
    *("int4", "int4", "int4", "int4", "bytea", "int4[]"),
]
_COPY = f"COPY chunks ({', '.join(ChunkRow._fields)}) FROM STDIN (FORMAT BINARY)"


async def add_chunks(connection: AsyncConnection, rows: Iterable[ChunkRow]) -> None:
    """Store passages; their vectors and postings are for the caller to add."""
    driver: Any = (await connection.get_raw_connection()).driver_connection
    async with driver.cursor() as cursor, cursor.copy(_COPY) as copy:
        copy.set_types(_COLUMN_TYPES)
        for row in rows:
            await copy.write_row(row)
