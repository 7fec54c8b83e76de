"""Questions through a running service: asked in every mode, timed, judged and measured."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic, perf_counter
from typing import Any, TypeVar

from app.errors import FootnoteError, InvalidInput, StartupError
from evaluation.datasets import Dataset, Judgements, limited
from evaluation.judging import DatasetJudge, GoldenJudge, Hit, Judge
from evaluation.metrics import fuse_ranks, score_questions
from evaluation.questions import GoldenSet
from evaluation.service import Service

UPLOADS_AT_ONCE = 4
SEARCHES_AT_ONCE = 4
POLL_SECONDS = 1.0
STALL_SECONDS = 300.0

MODES = ("keyword", "vector", "hybrid", "rewrite", "rerank")
"""What may be asked of the service, each but the legs a hybrid search: `rewrite` for the query in a
language model's words, `rerank` with the service's reranker."""

BY_DEFAULT = tuple(mode for mode in MODES if mode != "rewrite")
"""A language model takes a second or more for each question; it is measured when it is asked for."""

CHECKED = ("rewrite", "rerank")
"""Modes that a search may skip, and then says so."""

PAST = {"rewrite": "rewritten", "rerank": "reranked"}

RRF = "rrf"
"""Computed here, from the rankings of both legs, to compare with."""

TIMED_LIMIT = 10
"""Hits that are asked for where time is taken, as a client usually would."""

SHOWN_HITS = 3

Item = TypeVar("Item")
Result = TypeVar("Result")

Tell = Callable[[str, int, int], None]
"""Called with the name of a step, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with a set. `timed` questions are asked one by one, for their time."""

    modes: Sequence[str] = BY_DEFAULT
    limit: int | None = None
    timed: int = 100
    seed: int = 0
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    title: str
    text: str
    relevant: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found for every question. `failed` documents could not be ingested.

    `rankings` and `scores` are by mode, the scores by measure and in the order of the questions.
    `times_ms` are what a client waited. `expected` and `found` are for people: what each question
    should have found, and its first hits in the best mode that was asked.
    """

    dataset: str
    documents: int
    failed: int
    passages: int
    embedding_model: str
    version: str
    setup: dict[str, Any]
    questions: dict[str, str]
    judgements: Judgements
    rankings: dict[str, dict[str, list[str]]]
    scores: dict[str, dict[str, list[float]]]
    times_ms: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    expected: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    found: dict[str, list[Found]] = field(default_factory=dict[str, list[Found]])
    seed: int = 0

    @property
    def main_mode(self) -> str:
        """The mode that stands for the whole: the last of those that were asked."""
        return [mode for mode in MODES if mode in self.rankings][-1]


@dataclass(frozen=True, slots=True)
class Judged:
    """Queries, the collection that they are asked of, and who judges what is found.

    `documents` were given, where that is known.
    """

    name: str
    collection: str
    queries: dict[str, str]
    judge: Judge
    documents: int | None = None


@asynccontextmanager
async def open_dataset(
    service: Service, dataset: Dataset, plan: Plan, tell: Tell
) -> AsyncGenerator[Judged]:
    """A set in a collection of its own, which is deleted afterwards unless it is to be kept."""
    async with service.temporary_collection(keep=plan.keep) as collection:
        names = await ingest(service, collection, dataset, tell)
        queries = limited(dataset.queries, plan.limit, plan.seed)
        judge = DatasetJudge(dataset, names)
        yield Judged(dataset.name, collection, queries, judge, len(dataset.documents))


async def open_golden(service: Service, golden: GoldenSet, collection: str, plan: Plan) -> Judged:
    """Questions about the documents that a collection holds already."""
    await service.collection(collection)
    queries = {one.id: one.text for one in golden.questions if one.expected}
    queries = limited(queries, plan.limit, plan.seed)
    judge = GoldenJudge(golden, queries, await service.documents(collection))
    return Judged(golden.name, collection, queries, judge)


async def ask_all(service: Service, judged: Judged, plan: Plan, tell: Tell) -> Outcome:
    """Ask every query in every mode, and measure."""
    collection, queries, judge = judged.collection, judged.queries, judged.judge
    if not queries:
        raise InvalidInput(
            f"{judged.name} asks for nothing that could be found.", hint="Add questions."
        )
    checked = [mode for mode in CHECKED if mode in plan.modes]
    setup = await service.setup(collection, next(iter(queries.values())), checked)
    if "rewrite" in checked and not setup["rewriter"]:
        raise InvalidInput(
            "No language model of the service rewrites queries.",
            hint="Set FOOTNOTE_OLLAMA_URLS and FOOTNOTE_REWRITE_TIMEOUT_SECONDS, or leave out"
            " --mode rewrite.",
        )
    modes = [one for one in plan.modes if one != "rerank" or setup["reranker"]]
    if not modes:
        raise InvalidInput(
            "The service has no reranker.",
            hint="Set FOOTNOTE_RERANKER, or leave out --mode rerank.",
        )
    times_ms = await _time(service, collection, queries, modes, plan, tell)

    async def search(query: tuple[str, str]) -> "_Asked":
        hits: dict[str, Sequence[Hit]] = {}
        skipped: set[str] = set()
        for mode in modes:
            if mode in CHECKED:
                hits[mode], is_done = await service.searched_surely(collection, query[1], mode)
                skipped |= set() if is_done else {mode}
            else:
                hits[mode] = await service.search(collection, query[1], mode)
        return _judge(query[0], hits, judge, skipped)

    asked = await each(queries.items(), search, SEARCHES_AT_ONCE, tell, "search")
    found = dict(zip(queries, asked, strict=True))
    judgements = {query_id: judge.judgements[query_id] for query_id in queries}
    rankings = {
        mode: {query_id: one.rankings[mode] for query_id, one in found.items()}
        for mode in asked[0].rankings
    }
    for mode in set(CHECKED) & set(modes):
        skipped = sum(mode in one.skipped for one in asked)
        setup[f"questions not {PAST[mode]}"] = skipped
    held = await service.collection(collection)
    given = held["documents"] if judged.documents is None else judged.documents
    return Outcome(
        dataset=judged.name,
        documents=given,
        failed=given - held["documents"],
        passages=held["chunks"],
        embedding_model=held["embedding_model"],
        version=await service.version(),
        setup=setup,
        questions=dict(queries),
        judgements=judgements,
        rankings=rankings,
        scores={mode: score_questions(judgements, run) for mode, run in rankings.items()},
        times_ms=times_ms,
        expected={query_id: judge.expected(query_id) for query_id in queries},
        found={query_id: one.first for query_id, one in found.items()},
        seed=plan.seed,
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    rankings: dict[str, list[str]]
    first: list[Found]
    skipped: set[str]


def _judge(
    query_id: str, hits: Mapping[str, Sequence[Hit]], judge: Judge, skipped: set[str]
) -> _Asked:
    """The rankings of one query in every mode, and by rank fusion where both legs were asked."""
    rankings = {mode: judge.units(query_id, found) for mode, found in hits.items()}
    if "keyword" in hits and "vector" in hits:
        legs = [hits["keyword"], hits["vector"]]
        by_id = {hit["chunk_id"]: hit for leg in legs for hit in leg}
        order = fuse_ranks([hit["chunk_id"] for hit in leg] for leg in legs)
        rankings[RRF] = judge.units(query_id, [by_id[chunk_id] for chunk_id in order])
    best = hits[[mode for mode in MODES if mode in hits][-1]]
    first = [
        Found(str(hit["title"]), " ".join(hit["text"].split()), judge.is_relevant(query_id, hit))
        for hit in best[:SHOWN_HITS]
    ]
    return _Asked(rankings, first, skipped)


async def _time(
    service: Service,
    collection: str,
    queries: Mapping[str, str],
    modes: Sequence[str],
    plan: Plan,
    tell: Tell,
) -> dict[str, list[float]]:
    """Milliseconds of each query in each mode, one after the other; a first one is not counted."""
    timed = list(limited(queries, plan.timed, plan.seed).values())
    times: dict[str, list[float]] = {}
    for mode in modes if timed else ():
        await service.search(collection, timed[0], mode, TIMED_LIMIT)
        times[mode] = []
        for number, query in enumerate(timed, 1):
            started = perf_counter()
            await service.search(collection, query, mode, TIMED_LIMIT)
            times[mode].append((perf_counter() - started) * 1000)
            tell(f"time, {mode}", number, len(timed))
    return times


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
