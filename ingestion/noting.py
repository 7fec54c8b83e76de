"""How far the worker is with each document, noted in the database for those who watch."""

import asyncio
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from uuid import UUID

import structlog
from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.types import Uuid

from app.db.transactions import translated_errors
from app.errors import FootnoteError
from ingestion.claims import Claim
from ingestion.pipeline import Report, Stage

log = structlog.get_logger(__name__)

NOTE_SECONDS = 1.0

_Note = tuple[UUID, Stage, int, int]
"""Document, stage, passages done, passages in all."""


class ProgressNotes:
    """One short statement a second for all documents at hand, and none for what is done sooner."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._notes: dict[UUID, _Note] = {}
        self._noted: Mapping[UUID, _Note] = {}

    @contextmanager
    def of(self, claim: Claim) -> Generator[Report]:
        """What is reported to it is noted, while the block runs and the claim is good."""

        def report(stage: Stage, done: int, total: int) -> None:
            self._notes[claim.id] = (claim.document_id, stage, done, total)

        try:
            yield report
        finally:
            self._notes.pop(claim.id, None)

    async def run(self) -> None:
        """For ever; what cannot be noted now is noted next time."""
        while True:
            await asyncio.sleep(NOTE_SECONDS)
            try:
                await self.write()
            except FootnoteError as error:
                log.info("progress_not_noted", reason=error.detail)
            except Exception:
                log.exception("progress_not_noted")

    async def write(self) -> None:
        """Note what has changed since the last time; raises what databases raise."""
        now = dict(self._notes)
        news = {claim: note for claim, note in now.items() if self._noted.get(claim) != note}
        if not news:
            return
        document_ids, stages, done, total = zip(*news.values(), strict=True)
        values = {
            "claims": list(news),
            "document_ids": list(document_ids),
            "stages": list(stages),
            "done": list(done),
            "total": list(total),
        }
        with translated_errors():
            async with self._engine.begin() as connection:
                await connection.execute(_NOTE, values)
        self._noted = now


# Whoever holds a document's row is about to change its status, and progress ends with that.
_NOTE = text(
    """
    WITH free AS MATERIALIZED (
      SELECT d.id, f.stage, f.done, f.total
      FROM unnest(:document_ids, :claims, cast(:stages AS text[]), cast(:done AS integer[]),
        cast(:total AS integer[])) AS f (document_id, claim, stage, done, total)
      JOIN documents AS d ON d.id = f.document_id AND d.claim = f.claim
      FOR NO KEY UPDATE OF d SKIP LOCKED)
    UPDATE documents AS d
    SET progress = jsonb_build_object('stage', free.stage, 'done', free.done, 'total', free.total)
    FROM free WHERE d.id = free.id
    """
).bindparams(bindparam("document_ids", type_=ARRAY(Uuid)), bindparam("claims", type_=ARRAY(Uuid)))
