"""Embedding for the service: off the event loop, bounded, and together when many ask at once."""

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from app.config import Settings
from app.embedding.base import Embedder, ReadsTokens, TextKind, TokenVectors, Vectors
from app.embedding.loading import query_threads
from app.errors import EmbeddingUnavailable, Overloaded

MAX_TOGETHER = 8
"""Texts in one run. Beyond this a run costs more time per caller than it saves."""


QUERIES_KEPT = 256
"""So many queries' token vectors are kept for whoever asks for them after the query's own vector."""


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    texts: Sequence[str]
    kind: TextKind
    vectors: "asyncio.Future[Vectors]"


class QueryEmbedder:
    """Runs an embedder in `threads` threads, with at most `waiters` calls waiting for one.

    A call that finds a thread idle starts at once. Those that arrive while all are busy are
    gathered, so that the next idle thread computes several in one run. Belongs to one event loop.
    """

    def __init__(self, embedder: Embedder, *, threads: int, waiters: int) -> None:
        self.embedder = embedder
        self._threads = threads
        self._max_waiting = waiters
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="query-embedding")
        self._busy = 0
        self._closed = False
        self._waiting: deque[_Request] = deque()
        self._wants_tokens = False
        self._tokens: dict[str, TokenVectors] = {}

    async def embed(self, texts: Sequence[str], kind: TextKind) -> Vectors:
        """Unit vectors: float32, shape (len(texts), dimensions), in input order.

        A call with many texts takes its turn again for every MAX_TOGETHER of them, so that it
        does not keep single queries waiting. Raises Overloaded when too many calls wait, and
        what the embedder raises.
        """
        if len(self._waiting) >= self._max_waiting and self._busy >= self._threads:
            raise Overloaded("Too many texts are waiting to be embedded.")
        parts = [
            await self._take_turn(texts[start : start + MAX_TOGETHER], kind)
            for start in range(0, len(texts), MAX_TOGETHER)
        ]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([np.empty((0, self.embedder.dimensions), np.float32), *parts])

    async def tokens(self, query: str) -> TokenVectors | None:
        """What the model made of each token of the query; None where it tells nothing of them.

        From the first call on they come with the query's own vector, out of one run.
        """
        if not isinstance(self.embedder, ReadsTokens):
            return None
        self._wants_tokens = True
        if query not in self._tokens:
            await self.embed([query], "query")
        return self._tokens.get(query)

    def close(self) -> None:
        """Refuse what waits, finish what runs, and release the threads."""
        self._closed = True
        for request in self._waiting:
            if not request.vectors.done():
                request.vectors.set_exception(_closing())
        self._waiting.clear()
        self._pool.shutdown()

    async def _take_turn(self, texts: Sequence[str], kind: TextKind) -> Vectors:
        if self._closed:
            raise _closing()
        request = _Request(texts, kind, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._start_idle_threads()
        try:
            return await request.vectors
        except asyncio.CancelledError:
            if request in self._waiting:
                self._waiting.remove(request)
            raise

    def _start_idle_threads(self) -> None:
        while self._waiting and self._busy < self._threads:
            together = self._gather()
            self._busy += 1
            texts = [text for request in together for text in request.texts]
            run = asyncio.get_running_loop().run_in_executor(
                self._pool, self._compute, texts, together[0].kind
            )
            run.add_done_callback(lambda run, together=together: self._finish(run, together))

    def _compute(self, texts: list[str], kind: TextKind) -> tuple[Vectors, dict[str, TokenVectors]]:
        if kind == "query" and self._wants_tokens and isinstance(self.embedder, ReadsTokens):
            vectors, tokens = self.embedder.embed_with_tokens(texts, kind)
            return vectors, dict(zip(texts, tokens, strict=True))
        return self.embedder.embed(texts, kind), {}

    def _gather(self) -> list[_Request]:
        """The oldest request, and its share of those of the same kind that wait behind it."""
        share = -(-len(self._waiting) // self._threads)
        first = self._waiting.popleft()
        together = [first]
        texts_count = len(first.texts)
        while len(together) < share and self._waiting:
            candidate = self._waiting[0]
            texts_count += len(candidate.texts)
            if candidate.kind != first.kind or texts_count > MAX_TOGETHER:
                break
            together.append(self._waiting.popleft())
        return together

    def _finish(
        self,
        run: "asyncio.Future[tuple[Vectors, dict[str, TokenVectors]]]",
        together: list[_Request],
    ) -> None:
        self._busy -= 1
        error = run.exception()
        if error is None:
            self._tokens |= run.result()[1]
            while len(self._tokens) > QUERIES_KEPT:
                del self._tokens[next(iter(self._tokens))]
        start = 0
        for request in together:
            end = start + len(request.texts)
            if request.vectors.done():  # its caller has gone; the others still want theirs
                pass
            elif error is None:
                request.vectors.set_result(run.result()[0][start:end])
            else:
                request.vectors.set_exception(error)
            start = end
        self._start_idle_threads()


def serve_queries(settings: Settings, embedder: Embedder) -> QueryEmbedder:
    return QueryEmbedder(
        embedder, threads=query_threads(settings), waiters=settings.embedding_waiters
    )


def _closing() -> EmbeddingUnavailable:
    return EmbeddingUnavailable("The service is stopping.")
