"""A patient client of a running Footnote: what it can do here, any client could."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx

from app.errors import StartupError
from evaluation.datasets import Document

HITS_MAX = 200
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
        counted, cursor = 0, None
        while True:
            query = {"collection": collection, "status": status, "limit": 100}
            page = await self._call(
                "GET", "/api/documents", params=query | ({"cursor": cursor} if cursor else {})
            )
            counted += len(page["documents"])
            if (cursor := page["next_cursor"]) is None:
                return counted

    async def collection(self, name: str) -> dict[str, Any]:
        listed = await self._call("GET", "/api/collections")
        return next(one for one in listed["collections"] if one["name"] == name)

    async def search(self, collection: str, query: str, mode: str) -> list[dict[str, Any]]:
        body = {"query": query, "collection": collection, "mode": mode, "limit": HITS_MAX}
        return (await self._call("POST", "/api/search", json=body))["hits"]

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


@asynccontextmanager
async def open_service(url: str, api_key: str | None) -> AsyncGenerator[Service]:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120) as client:
        yield Service(client)
