"""A reranker elsewhere, in the form that Jina, Cohere, vLLM and others share: `POST …/v1/rerank`.

`{"model", "query", "documents", "top_n"}` is answered with
`{"results": [{"index", "relevance_score"}]}`, best first.
"""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import CancelledError
from threading import Thread
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import numpy as np

from reranker.base import RerankerUnavailable, Scores, checked
from reranker.cross_encoder import encodable

RERANK_PATH = "/v1/rerank"
MAX_REPLY_BYTES = 1024 * 1024
CONNECTIONS = 8


class RemoteReranker:
    """Asks a server; every failure of it is a RerankerUnavailable, `timeout_seconds` later at most.

    `url` is the server's, or that of its rerank route. The bound holds for a call as a whole,
    however slowly the server's bytes come: so calls run on an event loop of the reranker's own.
    """

    def __init__(
        self, url: str, *, model: str, api_key: str | None, timeout_seconds: float
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RerankerUnavailable(f"{url} is not the address of a server")
        self._url = url if parts.path.rstrip("/") else url.rstrip("/") + RERANK_PATH
        # Whoever searches may read this: nothing of where the server is.
        self.name = model or "the server"
        self.digest = hashlib.sha256(f"{self._url}\0{model}".encode()).hexdigest()
        self._model = model
        self._timeout_seconds = timeout_seconds
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=timeout_seconds,
            follow_redirects=False,
            trust_env=False,
            limits=httpx.Limits(max_connections=CONNECTIONS),
        )
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="remote-reranker", daemon=True)
        self._thread.start()

    def score(self, query: str, passages: Sequence[str]) -> Scores:
        if not passages:
            return np.empty(0, np.float32)
        if self._loop.is_closed():
            raise RerankerUnavailable(f"{self.name} is closed")
        asked = asyncio.run_coroutine_threadsafe(self._ask(query, passages), self._loop)
        try:
            return checked(asked.result(), count=len(passages), name=self.name)
        except CancelledError:
            raise RerankerUnavailable(f"{self.name} is closed") from None

    def close(self) -> None:
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()
        await asyncio.sleep(0)  # the loop's own part of closing connections

    async def _ask(self, query: str, passages: Sequence[str]) -> Scores:
        documents = [encodable(passage) for passage in passages]
        body = {"query": encodable(query), "documents": documents, "top_n": len(passages)}
        if self._model:
            body["model"] = self._model
        try:
            async with asyncio.timeout(self._timeout_seconds):
                reply = await self._reply(body)
        except (TimeoutError, httpx.TimeoutException):
            raise RerankerUnavailable(
                f"{self.name} did not answer within {self._timeout_seconds:g} s"
            ) from None
        except asyncio.CancelledError:
            raise RerankerUnavailable(f"{self.name} is closed") from None
        except httpx.HTTPError as error:
            raise RerankerUnavailable(
                f"{self.name} cannot be reached ({type(error).__name__})"
            ) from error
        return read_scores(reply, len(passages), self.name)

    async def _reply(self, body: dict[str, Any]) -> bytes:
        """The body of the reply; what a server says beyond its status is not passed on."""
        async with self._client.stream("POST", self._url, json=body) as response:
            if not response.is_success:
                raise RerankerUnavailable(f"{self.name} answered {response.status_code}")
            received = bytearray()
            async for part in response.aiter_bytes():
                received += part
                if len(received) > MAX_REPLY_BYTES:
                    raise RerankerUnavailable(f"{self.name} answered more than can be read")
        return bytes(received)


def read_scores(reply: bytes, count: int, name: str) -> Scores:
    """The scores in the order of the passages; raises RerankerUnavailable unless all are there."""
    try:
        results = json.loads(reply)["results"]
        pairs = [(one["index"], one["relevance_score"]) for one in results]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise RerankerUnavailable(f"{name} gave a reply of another form") from None
    scores = np.full(count, np.nan)
    for index, score in cast("list[tuple[object, object]]", pairs):
        if type(index) is not int or not 0 <= index < count or not np.isnan(scores[index]):
            raise RerankerUnavailable(
                f"{name} gave scores for passages that it was not asked about"
            )
        if type(score) not in (int, float):
            raise RerankerUnavailable(f"{name} gave a score that is no number")
        try:
            scores[index] = cast("float", score)
        except OverflowError:
            raise RerankerUnavailable(f"{name} gave a score that is no number") from None
    if np.isnan(scores).any():
        raise RerankerUnavailable(f"{name} did not give a score for every passage")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused
        return scores.astype(np.float32)
