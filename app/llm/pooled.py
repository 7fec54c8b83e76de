"""Another model on the servers of a pool whose own model is another."""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from app.llm.base import UNHURRIED, Admission, GenerationEvent, GenerationOptions, Message


class _Servers(Protocol):
    async def digest_of(self, model: str) -> str | None: ...

    def generate(
        self,
        model: str,
        messages: Sequence[Message],
        options: GenerationOptions,
        admission: Admission,
    ) -> AsyncGenerator[GenerationEvent]: ...


class PooledModel:
    """A ChatModel; it shares slots and queue with whatever else the servers do."""

    def __init__(self, servers: _Servers, model: str) -> None:
        self._servers = servers
        self._model = model

    @property
    def name(self) -> str:
        return self._model

    async def digest(self) -> str | None:
        return await self._servers.digest_of(self._model)

    def stream(
        self,
        messages: Sequence[Message],
        options: GenerationOptions,
        admission: Admission = UNHURRIED,
    ) -> AsyncGenerator[GenerationEvent]:
        return self._servers.generate(self._model, messages, options, admission)
