"""Another embedding model for a collection, made ready behind the one that serves.

A job does some of it and comes back for the rest, behind whatever somebody waits for. Nothing is
kept of how far it is: a passage without a vector of the model is still to be embedded. What writers
add meanwhile is found the same way, the last of it while no writer is in the collection.
"""

from dataclasses import dataclass

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.model_switches import (
    DuePassage,
    Switch,
    add_missing_vectors,
    conclude,
    drop_vectors,
    due_passages,
    find_switch,
    is_complete,
    put_in_service,
    recount,
)
from app.db.retries import RetryLater
from app.db.transactions import translated_errors
from app.db.vector_partitions import ensure_index
from app.embedding.known import ModelMissing
from app.errors import EmbeddingUnavailable, NotFound
from app.failpoints import reach
from ingestion.pipeline import Tools, vectors_of
from ingestion.types import Chunk, embedded_text

PASSAGES_AT_ONCE = 512
PASSAGES_PER_JOB = 4096
"""Enough to be worth taking a job, few enough to let uploads pass soon."""

VECTORS_DROPPED_AT_ONCE = 20_000
ELSEWHERE_PAUSE_SECONDS = 2.0

log = structlog.get_logger(__name__)


async def advance_switch(tools: Tools, collection_id: int) -> bool:
    """Do some of what the collection's other model needs; False when it cannot be loaded.

    Raises RetryLater when there is more to do, DatabaseUnavailable and StorageFull.
    """
    switch = await tools.transaction(lambda connection: find_switch(connection, collection_id))
    if switch is None or switch.status == "failed":
        return True
    try:
        if switch.status == "dropping":
            await _drop_some(tools, switch)
        else:
            await _fill(tools, switch)
            await _finish(tools, switch)
    except NotFound:
        log.info("switch_without_collection", collection=switch.collection)
    except (ModelMissing, EmbeddingUnavailable) as error:
        return await _give_up(tools, switch, error)
    return True


async def _fill(tools: Tools, switch: Switch) -> None:
    """Embed what has no vector of the model; raises RetryLater unless that was all."""
    await tools.transaction(lambda connection: recount(connection, switch))
    walk = _Walk(tools, switch)
    for _ in range(PASSAGES_PER_JOB // PASSAGES_AT_ONCE):
        if not await walk.take_some():
            return
    raise RetryLater(0)


@dataclass(slots=True)
class _Walk:
    """Through the passages without a vector, by id; lower ones that come late, the next walk finds."""

    tools: Tools
    switch: Switch
    after: int = 0

    async def take_some(self) -> bool:
        """Whether there were any."""
        switch = self.switch

        async def look(connection: AsyncConnection) -> list[DuePassage]:
            return await due_passages(connection, switch, after=self.after, limit=PASSAGES_AT_ONCE)

        passages = await self.tools.transaction(look)
        if not passages:
            return False
        self.after = passages[-1].id
        model = await self.tools.model(switch.model_id)
        vectors = await vectors_of(
            [passage.content_hash for passage in passages],
            [_text_of(passage) for passage in passages],
            switch.tenant_id,
            model,
            self.tools,
        )
        chunk_ids = [passage.id for passage in passages]
        await self.tools.transaction(
            lambda connection: add_missing_vectors(connection, switch, chunk_ids, vectors)
        )
        reach("switch.round_committed")
        return True


async def _finish(tools: Tools, switch: Switch) -> None:
    """Index what is complete, and put it in service if that is wanted."""
    if not await tools.transaction(lambda connection: is_complete(connection, switch)):
        raise RetryLater(0)
    reach("switch.filled")
    if switch.status == "preparing":
        with translated_errors():
            await ensure_index(tools.engine, switch.model_id)

        await tools.transaction(lambda connection: conclude(connection, switch, "prepared"))
        log.info("model_prepared", collection=switch.collection, model=switch.model_name)
    if not switch.activates:
        return
    if await tools.transaction(lambda connection: put_in_service(connection, switch.switch_id)):
        reach("switch.committed")
        log.info("model_in_service", collection=switch.collection, model=switch.model_name)
        return
    # Another collection of the switch is not ready yet, or a writer was faster.
    raise RetryLater(ELSEWHERE_PAUSE_SECONDS)


async def _drop_some(tools: Tools, switch: Switch) -> None:
    dropped = await tools.transaction(
        lambda connection: drop_vectors(connection, switch, VECTORS_DROPPED_AT_ONCE)
    )
    if dropped == VECTORS_DROPPED_AT_ONCE:
        raise RetryLater(0)
    log.info("model_dropped", collection=switch.collection, model=switch.model_name)


async def _give_up(tools: Tools, switch: Switch, error: EmbeddingUnavailable) -> bool:
    """What serves goes on serving; a model that is complete, or nearly, keeps what it has."""
    log.warning("model_not_loaded", collection=switch.collection, reason=error.detail)
    status = "failed" if switch.activates or switch.status == "preparing" else switch.status
    await tools.transaction(
        lambda connection: conclude(connection, switch, status, reason=error.detail)
    )
    return False


def _text_of(passage: DuePassage) -> str:
    """What both search legs see of the passage, as it was cut."""
    chunk = Chunk(
        0, passage.text, 0, len(passage.text), tuple(passage.heading), None, 0, passage.context
    )
    return embedded_text(passage.title, chunk)
