"""Vectors for passages: known ones again, new ones in large rounds gathered across documents."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from app.embedding.base import Embedder, Vectors
from app.telemetry import CHUNKS_EMBEDDED, stage

RECENT_TEXTS = 4096
"""What was embedded last, for copies of a document that follow before the first is written."""

ROUND_TEXTS = 512
"""Enough for well-filled batches of texts of equal length, few enough to take turns quickly."""


def new_texts(
    hashes: Sequence[bytes], texts: Sequence[str], known: Iterable[bytes]
) -> dict[bytes, str]:
    """The texts that must be embedded, by content hash: those not known, each once."""
    known = frozenset(known)
    return {
        content_hash: text
        for content_hash, text in zip(hashes, texts, strict=True)
        if content_hash not in known
    }


def assemble(
    hashes: Sequence[bytes], vectors: Mapping[bytes, NDArray[np.float32]], dimensions: int
) -> Vectors:
    """The vectors in the order of the hashes: shape (len(hashes), dimensions)."""
    assembled = np.empty((len(hashes), dimensions), np.float32)
    for row, content_hash in enumerate(hashes):
        assembled[row] = vectors[content_hash]
    return assembled


@dataclass(slots=True)
class _Request:
    texts: Sequence[str]
    vectors: asyncio.Future[Vectors] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class RoundEmbedder:
    """Embeds for many documents at once, in a thread of its own.

    While one round is computed the next one gathers, so rounds grow with the load: a lone
    document starts at once, and many small ones share full batches. `embedded_count` counts the
    texts that the model was given.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedded_count = 0
        self._embedder = embedder
        self._recent: dict[str, NDArray[np.float32]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rounds")
        self._waiting: asyncio.Queue[_Request] = asyncio.Queue()
        self._rounds = asyncio.create_task(self._run())

    async def embed(
        self, texts: Sequence[str], tell: Callable[[int], None] | None = None
    ) -> Vectors:
        """Vectors of passages in input order; raises EmbeddingUnavailable.

        `tell` is told how many of them are done, now and then.
        """
        parts: list[Vectors] = []
        # One part after the other: a huge document must not keep the small ones waiting.
        for part in _parts(texts):
            request = _Request(part)
            self._waiting.put_nowait(request)
            parts.append(await request.vectors)
            if tell is not None:
                tell(sum(map(len, parts)))
        if not parts:
            return np.empty((0, self._embedder.dimensions), np.float32)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    async def close(self) -> None:
        self._rounds.cancel()
        await asyncio.gather(self._rounds, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            requests = [await self._waiting.get()]
            while not self._waiting.empty() and _texts_count(requests) < ROUND_TEXTS:
                requests.append(self._waiting.get_nowait())
            requests = [request for request in requests if not request.vectors.done()]
            if not requests:
                continue
            try:
                vectors = await loop.run_in_executor(self._thread, self._compute, requests)
            except Exception as error:  # noqa: BLE001 - it is whoever waits who must know
                for request in requests:
                    if not request.vectors.done():
                        request.vectors.set_exception(error)
                continue
            for request, own in zip(requests, vectors, strict=True):
                if not request.vectors.done():
                    request.vectors.set_result(own)

    def _compute(self, requests: Sequence[_Request]) -> list[Vectors]:
        """The vectors of each request; documents in flight together may hold the same text."""
        wanted = dict.fromkeys(text for request in requests for text in request.texts)
        new = [text for text in wanted if text not in self._recent]
        vectors = {text: self._recent[text] for text in wanted if text in self._recent}
        if new:
            with stage("ingest", "embed_round"):
                vectors.update(zip(new, self._embedder.embed(new, "document"), strict=True))
            CHUNKS_EMBEDDED.inc(len(new))
            self.embedded_count += len(new)
        self._recent.update((text, vectors[text]) for text in new)
        for text in list(islice(self._recent, max(0, len(self._recent) - RECENT_TEXTS))):
            del self._recent[text]
        return [np.stack([vectors[text] for text in request.texts]) for request in requests]


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(texts), ROUND_TEXTS):
        yield texts[start : start + ROUND_TEXTS]


def _texts_count(requests: Iterable[_Request]) -> int:
    return sum(len(request.texts) for request in requests)
