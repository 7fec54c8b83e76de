"""Which weights stand behind a model's name: names and tags may be given to other weights."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

FRESH_SECONDS = 5.0
"""So long after a tag was pulled anew the weights of before may still be taken for it."""

Digests = Mapping[str, str]
"""The digest of each model, by its name with its tag."""


def with_tag(model: str) -> str:
    return model if ":" in model.rsplit("/", 1)[-1] else f"{model}:latest"


class KnownDigests:
    """What each server said last, asked again behind it after FRESH_SECONDS."""

    def __init__(self, asks: Callable[[], Iterable[Awaitable[Digests]]]) -> None:
        self._asks = asks
        self._told: Sequence[Digests] = ()
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    async def get(self, model: str) -> str | None:
        """The digest of its weights, those of all where servers differ; None where nobody has it.

        Waits only while nothing is known.
        """
        if time.monotonic() - self._asked_at >= FRESH_SECONDS and self._asking is None:
            self._asking = asyncio.create_task(self._refresh())
        if not any(self._told) and self._asking is not None:
            await asyncio.wait({self._asking})
        name = with_tag(model)
        return "+".join(sorted({told[name] for told in self._told if name in told})) or None

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})

    async def _refresh(self) -> None:
        try:
            self._told = await asyncio.gather(*self._asks())
            self._asked_at = time.monotonic()
        finally:
            self._asking = None
