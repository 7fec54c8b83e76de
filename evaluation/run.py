"""One dataset through a running service: ingested as files, searched in every mode, measured."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TypeVar

from app.errors import FootnoteError, StartupError
from evaluation.datasets import Dataset
from evaluation.metrics import best_passages, measure
from evaluation.service import Service

UPLOADS_AT_ONCE = 4
SEARCHES_AT_ONCE = 4
POLL_SECONDS = 1.0
STALL_SECONDS = 300.0

Item = TypeVar("Item")
Result = TypeVar("Result")

Tell = Callable[[str, int, int], None]
"""Called with the name of a step, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`metrics` by mode and measure; `failed` documents could not be ingested."""

    dataset: str
    documents: int
    failed: int
    passages: int
    queries: int
    embedding_model: str
    version: str
    metrics: dict[str, dict[str, float]]


async def run(
    service: Service, dataset: Dataset, modes: Sequence[str], tell: Tell, *, keep: bool = False
) -> Outcome:
    """Ingest, search and measure; the collection made for it is deleted afterwards."""
    version = await service.version()
    async with service.temporary_collection(keep=keep) as name:
        names = await ingest(service, name, dataset, tell)
        metrics: dict[str, dict[str, float]] = {}
        for mode in modes:

            async def search(query: tuple[str, str], mode: str = mode) -> dict[str, float]:
                hits = await service.search(name, query[1], mode)
                return best_passages((names[hit["document_id"]], hit["score"]) for hit in hits)

            found = await each(
                dataset.queries.items(), search, SEARCHES_AT_ONCE, tell, f"search, {mode}"
            )
            metrics[mode] = measure(
                dataset.judgements, dict(zip(dataset.queries, found, strict=True))
            )
        collection = await service.collection(name)
    return Outcome(
        dataset=dataset.name,
        documents=len(dataset.documents),
        failed=len(dataset.documents) - collection["documents"],
        passages=collection["chunks"],
        queries=len(dataset.queries),
        embedding_model=collection["embedding_model"],
        version=version,
        metrics=metrics,
    )


async def ingest(service: Service, name: str, dataset: Dataset, tell: Tell) -> dict[str, str]:
    """Upload everything that says something and wait for it; the dataset's ids by the service's.

    Some sets hold empty documents, which no service could find; they stay in the judgements.
    """
    documents = [one for one in dataset.documents if one.title.strip() or one.text.strip()]
    ids = await each(
        enumerate(documents, 1),
        lambda numbered: service.upload(name, *numbered),
        UPLOADS_AT_ONCE,
        tell,
        "upload",
    )
    waiting, deadline = len(ids), monotonic() + STALL_SECONDS
    while waiting:
        left = await service.count(name, "queued") + await service.count(name, "processing")
        if left < waiting:
            waiting, deadline = left, monotonic() + STALL_SECONDS
        elif monotonic() > deadline:
            raise StartupError(
                f"{waiting} documents are waiting, and none was processed for a while.",
                hint="Start a worker with `footnote worker`.",
            )
        tell("ingest", len(ids) - waiting, len(ids))
        await asyncio.sleep(POLL_SECONDS)
    return {given: document.id for given, document in zip(ids, documents, strict=True)}


async def each(
    items: Iterable[Item],
    work: Callable[[Item], Awaitable[Result]],
    at_once: int,
    tell: Tell,
    step: str,
) -> list[Result]:
    """The results of `work` in the order of the items, `at_once` of them under way."""
    turns = asyncio.Semaphore(at_once)
    all_items = list(items)
    done = 0

    async def take_turn(item: Item) -> Result:
        nonlocal done
        async with turns:
            result = await work(item)
        done += 1
        tell(step, done, len(all_items))
        return result

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(take_turn(item)) for item in all_items]
    except* FootnoteError as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]
