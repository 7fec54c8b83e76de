"""A patient client of a running Footnote: what it can do here, any client could."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx

from app.errors import InvalidInput, StartupError
from evaluation.datasets import Document

HITS_MAX = 200
PAGE_SIZE = 100
WITH_A_MODEL = ("rewrite", "rerank")
RETRIES = 5
RERANKER_LOADS = 60
RERANKED_HITS = 20
ATTEMPTS = 60


class Service:
    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    @asynccontextmanager
    async def temporary_collection(self, *, keep: bool) -> AsyncGenerator[str]:
        """A new collection, deleted at the end unless it is to be kept."""
        name = f"eval-{uuid4().hex[:12]}"
        await self._call("POST", "/api/collections", json={"name": name})
        try:
            yield name
        finally:
            if not keep:
                await self._call("DELETE", f"/api/collections/{name}")

    async def upload(self, collection: str, number: int, document: Document) -> str:
        """Send a document as a file whose text is the document's own; returns the service's id.

        The files are named by number, because an id may be no name for a file.
        """
        content, filename = document.text, f"{number}.txt"
        if document.title:
            # JSON's strings are YAML's.
            content = f"---\ntitle: {json.dumps(document.title)}\n---\n\n{document.text}"
            filename = f"{number}.md"
        accepted = await self._call(
            "POST",
            "/api/documents",
            data={"collection": collection},
            files={"file": (filename, content.encode())},
        )
        return str(accepted["document_id"])

    async def count(self, collection: str, status: str) -> int:
        """How many documents have this status."""
        return len(await self.documents(collection, status))

    async def documents(self, collection: str, status: str | None = None) -> list[dict[str, Any]]:
        """What is known of the collection's documents, of all or of those with a status."""
        query: dict[str, Any] = {"collection": collection, "limit": PAGE_SIZE}
        query |= {"status": status} if status else {}
        documents: list[dict[str, Any]] = []
        while True:
            page = await self._call("GET", "/api/documents", params=query)
            documents += page["documents"]
            if (cursor := page["next_cursor"]) is None:
                return documents
            query["cursor"] = cursor

    async def collection(self, name: str) -> dict[str, Any]:
        listed = (await self._call("GET", "/api/collections"))["collections"]
        for one in listed:
            if one["name"] == name:
                return one
        raise InvalidInput(
            f"There is no collection {name}.",
            hint=f"There are: {', '.join(one['name'] for one in listed) or 'none'}.",
        )

    async def search(
        self, collection: str, query: str, mode: str, limit: int = HITS_MAX, **options: Any
    ) -> list[dict[str, Any]]:
        """Hits, best first."""
        return (await self.searched(collection, query, mode, limit, **options))["hits"]

    async def searched(
        self, collection: str, query: str, mode: str, limit: int, **options: Any
    ) -> dict[str, Any]:
        """The whole reply to a search; the modes `rewrite` and `rerank` are hybrid with a model.

        In the other modes no model takes part, whatever the collection chooses.
        """
        body: dict[str, Any] = {"query": query, "collection": collection, "limit": limit}
        body |= {one: mode == one for one in WITH_A_MODEL}
        body["mode"] = "hybrid" if mode in WITH_A_MODEL else mode
        return await self._call("POST", "/api/search", json=body | options)

    async def searched_surely(
        self, collection: str, query: str, mode: str
    ) -> tuple[list[dict[str, Any]], bool]:
        """Hits of a mode with a model, and whether the model took part.

        One that was late or busy is asked again: its judgement is wanted here, not its speed.
        """
        hits: list[dict[str, Any]] = []
        for _ in range(RETRIES):
            found = await self.searched(collection, query, mode, HITS_MAX)
            hits = found["hits"]
            if not isinstance(_told(found, mode), str) or not hits:
                return hits, True
        return hits, False

    async def passages(self, collection: str, document: Mapping[str, Any]) -> list[dict[str, Any]]:
        """A document's passages, as hits of a search that asks for nothing else."""
        only = {"$document_id": document["id"]}
        return await self.search(collection, document["title"], "vector", filters=only)

    async def setup(self, collection: str, query: str, modes: Sequence[str]) -> dict[str, Any]:
        """What takes part in a search: models, weights, the collection's own settings.

        The models of `modes` alone are looked for: those that are to be measured.
        """
        health = await self._call("GET", "/health")
        found = await self.searched(collection, query, "hybrid", 1, explain=True)
        explanation: dict[str, Any] = found.get("explanation") or {}
        return {
            "runtime": health.get("checks", {}).get("embedding", {}).get("runtime"),
            "weights": explanation.get("weights"),
            "reranker": await self._reranker(collection, query) if "rerank" in modes else None,
            "rewriter": await self._rewriter(collection, query) if "rewrite" in modes else None,
            "settings": (await self.collection(collection)).get("settings") or {},
            "cache": found.get("cache"),
        }

    async def _reranker(self, collection: str, query: str) -> str | None:
        """Which reranker there is; a model that is being loaded is waited for."""
        for _ in range(RERANKER_LOADS):
            found = await self.searched(collection, query, "rerank", RERANKED_HITS, explain=True)
            told = _told(found, "rerank")
            if not isinstance(told, str):
                return None if told is None else str(told["model"])
            if "would have taken" not in told:
                break
        return None

    async def _rewriter(self, collection: str, query: str) -> str | None:
        """Which model rewrites queries; one that is being loaded is waited for."""
        for _ in range(RETRIES):
            told = _told(await self.searched(collection, query, "rewrite", 1), "rewrite")
            if not isinstance(told, str):
                return None if told is None else str(told["model"])
            if "would have taken" not in told:
                break
        return None

    async def ask(
        self, collection: str, question: str, history: Sequence[tuple[str, str]] = ()
    ) -> dict[str, Any]:
        """The whole reply to a question; `history` holds roles and texts, oldest first."""
        turns = [*history, ("user", question)]
        messages = [{"role": role, "content": content} for role, content in turns]
        body = {"messages": messages, "collection": collection}
        return await self._call("POST", "/api/chat", json=body)

    async def version(self) -> str:
        return (await self._call("GET", "/health"))["version"]

    async def _call(self, method: str, path: str, **request: Any) -> Any:
        """The JSON of the reply; a service that is busy is asked again when it says so."""
        for _ in range(ATTEMPTS):
            try:
                reply = await self._client.request(method, path, **request)
            except httpx.HTTPError as error:
                raise StartupError(
                    f"No reply from {self._client.base_url}: {error or type(error).__name__}.",
                    hint="Start it with `footnote serve`, or correct --url.",
                ) from None
            if reply.is_success:
                return reply.json()
            if reply.status_code not in (429, 503) or "Retry-After" not in reply.headers:
                raise StartupError(
                    f"{method} {path} was answered {reply.status_code}: {reply.text[:500]}",
                    hint="The service's log may say more.",
                )
            await asyncio.sleep(float(reply.headers["Retry-After"]))
        raise StartupError(
            f"{method} {path} was refused {ATTEMPTS} times, because the service is busy.",
            hint="Evaluate a service that has nothing else to do.",
        )


def _told(reply: dict[str, Any], mode: str) -> dict[str, Any] | str | None:
    """What a reply says of a mode with a model: what took part, or why it was not done."""
    explanation: dict[str, Any] = reply.get("explanation") or {}
    return explanation.get(mode)


@asynccontextmanager
async def open_service(url: str, api_key: str | None) -> AsyncGenerator[Service]:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120) as client:
        yield Service(client)
