"""Gives the passages of collections that ask for late interaction their token vectors.

Behind the documents, as settings are reached: a passage is found without them as well. What is
missing tells how far this is, so it can be cut short anywhere.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db.collections import enter_collection
from app.db.token_vectors import (
    Wanting,
    add_signs,
    drop_signs,
    may_fill,
    next_without_signs,
    wanting_collections,
)
from app.db.transactions import in_transaction, translated_errors
from app.embedding.base import ReadsTokens
from app.embedding.token_signs import SIGNS_VERSION, TokenReader
from app.errors import NotFound, Unavailable
from app.terms import extract_terms
from ingestion.pipeline import Tools
from ingestion.types import Chunk, embedded_text

PASSAGES_AT_ONCE = 64
"""Few enough that whoever embeds a document meanwhile hardly waits."""

DROPPED_AT_ONCE = 10_000
LOOK_SECONDS = 5.0

_END = -1

log = structlog.get_logger(__name__)


class TokenFiller:
    """`tools` loads the model, so it is asked only where something is missing.

    A collection of another model than the worker's own is left to a worker of that model.
    """

    def __init__(self, engine: AsyncEngine, tools: Callable[[], Awaitable[Tools]]) -> None:
        self._engine = engine
        self._tools = tools
        self._reader: TokenReader | None = None
        # What each collection was like when nothing was missing: until it changes, nothing is.
        self._complete: dict[int, Wanting] = {}

    async def run(self) -> None:
        """For ever; what fails is tried again next time."""
        while True:
            try:
                with translated_errors():
                    await self.fill()
            except Unavailable as error:
                log.info("token_vectors_put_off", reason=error.detail)
            except Exception:
                log.exception("token_vectors_failed")
            await asyncio.sleep(LOOK_SECONDS)

    async def fill(self) -> None:
        """Bring all collections to what they ask for, as far as this worker can."""
        for wanting in await in_transaction(self._engine.begin, wanting_collections):
            if self._complete.get(wanting.collection_id) == wanting:
                continue
            if await (self._fill(wanting) if wanting.is_wanted else self._drop(wanting)):
                self._complete[wanting.collection_id] = wanting

    async def _drop(self, wanting: Wanting) -> bool:
        async def drop(connection: AsyncConnection) -> int:
            return await drop_signs(connection, wanting.collection_id, DROPPED_AT_ONCE)

        while await in_transaction(self._engine.begin, drop):
            pass
        return True

    async def _fill(self, wanting: Wanting) -> bool:
        """Whether nothing is missing any more."""
        tools = await self._tools()
        embedder = tools.embedder
        if embedder.digest != wanting.model_digest or not isinstance(embedder, ReadsTokens):
            return False
        self._reader = self._reader or TokenReader(embedder, lambda word: bool(extract_terms(word)))
        started, made, after = time.monotonic(), 0, 0
        while True:
            round_ = await self._fill_some(wanting, self._reader, after)
            if round_ is None:
                return False
            added, after = round_
            made += added
            if after == _END:
                break
        if made:
            seconds = round(time.monotonic() - started, 1)
            log.info("token_vectors_made", collection=wanting.name, passages=made, seconds=seconds)
        return True

    async def _fill_some(
        self, wanting: Wanting, reader: TokenReader, after: int
    ) -> tuple[int, int] | None:
        """How many were made, and after which passage to go on; None where others are at it."""

        async def work(connection: AsyncConnection) -> tuple[int, int] | None:
            try:
                await enter_collection(connection, wanting.collection_id)
            except NotFound:
                return None
            if not await may_fill(connection, wanting.collection_id):
                return None
            rows = await next_without_signs(
                connection, wanting, after=after, limit=PASSAGES_AT_ONCE, version=SIGNS_VERSION
            )
            if not rows:
                return 0, _END
            texts = [_text_of(row) for row in rows]
            signs = [one.signs for one in await asyncio.to_thread(reader.read, texts, "document")]
            chunk_ids = [row.id for row in rows]
            added = await add_signs(connection, wanting, chunk_ids, signs, SIGNS_VERSION)
            return added, chunk_ids[-1]

        return await in_transaction(self._engine.begin, work)


def _text_of(row: Any) -> str:
    heading = tuple(row.heading)
    chunk = Chunk(0, row.text, 0, len(row.text), heading, None, 0, row.context)
    return embedded_text(row.title, chunk)
