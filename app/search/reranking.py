"""The best passages of a search, put in order once more by a model that reads them with the query.

Whatever keeps a reranker from answering in time costs a search that time and nothing else: the
order of before stands, and the reply says why.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, Literal

import numpy as np
import structlog
from numpy.typing import NDArray

from app.config import Settings
from app.db.collection_settings import RerankerChoice
from app.search.base import Hit
from app.telemetry import RERANKS
from reranker.base import Reranker, RerankerUnavailable
from reranker.base import Scores as RerankerScores
from reranker.fusion import fuse, standardise

Scores = NDArray[np.float64]
Skipping = Literal["late", "busy", "unavailable", "closing"]

OFF: RerankerChoice = "off"

log = structlog.get_logger(__name__)


class Skipped(Exception):
    """The order of before stands; the message says why, for the reply."""

    def __init__(self, kind: Skipping, reason: str) -> None:
        super().__init__(reason)
        self.kind: Skipping = kind


Told = Mapping[str, Any] | str
"""What the reply says of a reranking: of one that was done what took part, else why it was not."""


@dataclass(frozen=True, slots=True)
class Lane:
    """How a reranker is had, and how many searches it serves at the same time.

    `open` blocks; it is called once, by the first search that needs the reranker.
    """

    open: Callable[[], Reranker]
    at_once: int = 1


def choose(
    asked: bool | None, choices: AbstractSet[RerankerChoice | None], own: str
) -> tuple[str, str]:
    """The reranker for a search over collections with these choices, and why there is none.

    Both are empty where nobody wants one. `own` is the service's, empty if it has none. Who asks
    gets the service's own also where collections would rather not be reranked, or disagree: their
    passages must be judged by one and the same.
    """
    if asked is False:
        return "", ""
    if asked and (len(choices) > 1 or OFF in choices):
        choices = {None}
    if len(choices) > 1:
        return "", "the collections choose different rerankers"
    [choice] = choices
    if choice == OFF:
        return "", ""
    name = choice or own
    return name, "" if name or not asked else "no reranker is configured"


class Rerankers:
    """The rerankers that a search may name, each in threads of its own.

    A search waits `rerank_timeout_seconds` at most, with `rerank_queue_size` others per reranker.
    A run that comes too late ends by itself, and keeps its thread until then.
    """

    def __init__(self, lanes: Mapping[str, Lane], settings: Settings, *, own: str = "") -> None:
        """Take `own`, the name of the service's own reranker; empty if it has none."""
        self.own = own
        self._candidates = settings.rerank_candidates
        self._share = settings.rerank_share
        self._timeout_seconds = settings.rerank_timeout_seconds
        self._runners = {
            name: _Runner(lane, name, settings.rerank_queue_size) for name, lane in lanes.items()
        }

    @property
    def candidates(self) -> int:
        """How many of the best passages are put in order."""
        return self._candidates

    async def reorder(
        self, name: str, query: str, hits: Sequence[Hit]
    ) -> tuple[Sequence[Hit], Told]:
        """The hits with the best of them in the order of the reranker `name`."""
        best = hits[: self._candidates]
        if not best:
            return hits, "not done: nothing was found"
        try:
            scores, model = await self.score(name, query, [passage_text(hit) for hit in best])
        except Skipped as reason:
            return hits, f"not done: {reason}"
        told = {"model": model, "passages": len(best), "share": self._share}
        return merge(hits, scores, self._share), told

    async def score(
        self, name: str, query: str, passages: Sequence[str], timeout_seconds: float | None = None
    ) -> tuple[RerankerScores, str]:
        """Relevance of each passage, and the name of the model that found it; raises Skipped."""
        try:
            runner = self._runners.get(name)
            if runner is None:
                raise Skipped("unavailable", f"there is no reranker {name}")
            scored = await runner.score(query, passages, timeout_seconds or self._timeout_seconds)
        except Skipped as skipped:
            RERANKS.labels(skipped.kind).inc()
            log.info("rerank_skipped", reranker=name, kind=skipped.kind, reason=str(skipped))
            raise
        RERANKS.labels("done").inc()
        return scored

    async def score_all(
        self, name: str, query: str, passages: Sequence[str], timeout_seconds: float
    ) -> RerankerScores:
        """As `score`, of any number of passages, with so much time for each portion of them.

        Searches that wait for the same reranker get their turn between two portions.
        """
        portions = [
            passages[first : first + self._candidates]
            for first in range(0, len(passages), self._candidates)
        ]
        scored = [await self.score(name, query, part, timeout_seconds) for part in portions]
        return np.concatenate([scores for scores, _ in scored])

    def models(self) -> dict[str, str]:
        """Rerankers by the name that their users know, the service's own first."""
        others = [name for name in self._runners if name != self.own]
        first = {self.open(self.own).name: self.own} if self.own else {}
        return first | {name: name for name in others}

    def open(self, name: str) -> Reranker:
        """Load a reranker now; blocks. Raises RerankerUnavailable."""
        runner = self._runners.get(name)
        if runner is None:
            raise RerankerUnavailable(f"there is no reranker {name}")
        return runner.opened()

    def close(self) -> None:
        """Refuse what waits, and release threads and connections; what runs is waited for."""
        for runner in self._runners.values():
            runner.close()


class _Runner:
    """Runs one reranker. Used from one event loop; only `_waiting` is touched by its threads."""

    def __init__(self, lane: Lane, name: str, queue_size: int) -> None:
        self._lane = lane
        self._name = name
        self._room = lane.at_once + queue_size
        self._waiting = 0
        self._lock = Lock()
        self._opening = Lock()
        self._reranker: Reranker | None = None
        self._closed = False
        self._pool = ThreadPoolExecutor(lane.at_once, thread_name_prefix=f"rerank-{name[:20]}")

    async def score(
        self, query: str, passages: Sequence[str], timeout_seconds: float
    ) -> tuple[RerankerScores, str]:
        with self._lock:
            if self._closed:
                raise Skipped("closing", "the service is stopping")
            if self._waiting >= self._room:
                raise Skipped("busy", "too many searches wait for the reranker")
            self._waiting += 1
            running = self._pool.submit(self._run, query, passages)
        running.add_done_callback(self._leave)
        scored = asyncio.wrap_future(running)
        try:
            await asyncio.wait({scored}, timeout=timeout_seconds)
            if scored.cancelled():
                raise Skipped("closing", "the service is stopping")
            if not scored.done():
                raise Skipped("late", f"it would have taken more than {timeout_seconds:g} s")
            return scored.result()
        except RerankerUnavailable as error:
            raise Skipped("unavailable", str(error)) from error
        finally:
            # What is not waited for any more need not begin, and leaves its place at once.
            running.cancel()
            if not scored.cancel() and not scored.cancelled():
                scored.exception()  # seen, also when the search was cancelled meanwhile

    def opened(self) -> Reranker:
        with self._opening:
            if self._closed:
                raise RerankerUnavailable("the service is stopping")
            if self._reranker is None:
                self._reranker = self._lane.open()
            return self._reranker

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._opening:
            if self._reranker is not None:
                self._reranker.close()
        self._pool.shutdown()

    def _run(self, query: str, passages: Sequence[str]) -> tuple[RerankerScores, str]:
        try:
            reranker = self.opened()
            return reranker.score(query, passages), reranker.name
        except RerankerUnavailable:
            raise
        except Exception as error:
            log.exception("reranker_failed", reranker=self._name)
            raise RerankerUnavailable(f"{self._name} failed") from error

    def _leave(self, _running: "Future[Any]") -> None:
        with self._lock:
            self._waiting -= 1


# --- pure -----------------------------------------------------------------------------------------


def passage_text(hit: Hit) -> str:
    """What a reranker reads of a passage: title and heading path above it, as the legs do."""
    path = [hit.title, *(part for part in hit.heading if part != hit.title)]
    return "\n".join(filter(None, [" > ".join(filter(None, path)), hit.text]))


def merge(hits: Sequence[Hit], scores: RerankerScores, share: float) -> list[Hit]:
    """The hits with the first `len(scores)` of them in a new order, which their scores follow.

    The new score of a passage is that of before and the reranker's, both in their standard
    deviations over the passages that were read, mixed by `share` (0: only before, 1: only the
    reranker's). It is given in the unit of before, and above whatever was not read.
    """
    read, rest = hits[: len(scores)], hits[len(scores) :]
    if not read:
        return list(hits)
    before = np.array([hit.score for hit in read])
    wide = scores.astype(np.float64)
    mixed = before.mean() + (before.std() or 1.0) * fuse([before, wide], [1 - share, share])
    if rest:
        floor = rest[0].score
        mixed = np.maximum(mixed + max(0.0, floor - mixed.min()), np.nextafter(floor, np.inf))
    chunk_ids = np.array([hit.chunk_id for hit in read])
    order: list[int] = np.lexsort((chunk_ids, -mixed)).tolist()
    standard = standardise(wide)
    moved = [
        replace(
            read[place],
            score=float(mixed[place]),
            explanation=_with_movement(
                read[place].explanation,
                {
                    "from": place + 1,
                    "to": rank,
                    "score": float(scores[place]),
                    "standardised": float(standard[place]),
                },
            ),
        )
        for rank, place in enumerate(order, 1)
    ]
    return [*moved, *rest]


def _with_movement(
    explanation: Mapping[str, Any] | None, movement: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    return None if explanation is None else {**explanation, "rerank": movement}
