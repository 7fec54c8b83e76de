"""A service with an Ollama model, and with hosted providers that nobody uses yet."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from app.config import Settings
from app.language_models import ProviderSpec
from tests.doubles.hosted import HostedDouble, running_hosted
from tests.doubles.ollama import OllamaDouble
from tests.service import Service, ingest, open_service, working

TRAVEL = "# Travel\n\nAda approves travel above 500 euros. Receipts are sent within ten days.\n"
ASKED = {"question": "Who approves travel above 500 euros?"}
CLAUDE: dict[str, Any] = {
    "name": "claude",
    "provider": "anthropic",
    "tier": "orchestration",
    "served_as": "claude-sonnet",
    "context_tokens": 200_000,
    "prompt_price_per_million": "3",
    "completion_price_per_million": 15,
}


@dataclass(frozen=True)
class House:
    service: Service
    ollama: OllamaDouble
    hosted: HostedDouble

    async def call(self, method: str, path: str, status: int = 200, **request: Any) -> Any:
        reply = await self.service.client.request(method, path, **request)
        assert reply.status_code == status, reply.text
        return reply.json()

    async def ask(self, status: int = 200, **more: Any) -> Any:
        return await self.call("POST", "/api/chat", status, json={**ASKED, **more})


@asynccontextmanager
async def open_house(
    settings: Settings,
    embedder: Any,
    ollama: OllamaDouble,
    monkeypatch: pytest.MonkeyPatch,
    **changes: Any,
) -> AsyncGenerator[House]:
    ollama.reset()
    async with running_hosted() as hosted:
        for name in ("ANTHROPIC", "OPENAI"):
            monkeypatch.setenv(f"FOOTNOTE_{name}_API_KEY", hosted.key)
        given = {
            "ollama_urls": (ollama.url,),
            "providers": {
                "anthropic": ProviderSpec(kind="anthropic", url=hosted.url),
                "openai": ProviderSpec(kind="openai", url=f"{hosted.url}/v1"),
                "azure-eu": ProviderSpec(kind="azure", url=hosted.url),
            },
            **changes,
        }
        changed = settings.model_copy(update=given)
        async with open_service(changed) as service, working(changed, embedder):
            await service.client.post("/api/collections", json={"name": "default"})
            await ingest(service, "travel.md", TRAVEL)
            yield House(service, ollama, hosted)
