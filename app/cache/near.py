"""A few of the values in the process itself, in front of Redis: what is asked often, and just now.

A key is a hash of all that its value depends on, so a copy can never be out of date. It is asked
for again in Redis after FRESH_SECONDS all the same, so that what was cleared there is forgotten in
every process, and so that Redis sees what is used. While Redis is away every copy serves.
"""

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from app.cache.base import Held, LayerName, Store

FRESH_SECONDS = 5.0
NEAR_BYTES = 32 * 1024 * 1024
OVERHEAD_BYTES = 200
"""What a copy needs besides its value, roughly."""


class NearStore:
    """Implements Store in front of another. The copies used least recently go first."""

    def __init__(self, inner: Store, *, max_bytes: int = NEAR_BYTES) -> None:
        self._inner = inner
        self._max_bytes = max_bytes
        self._bytes = 0
        self._copies: OrderedDict[tuple[LayerName, bytes], tuple[float, bytes]] = OrderedDict()
        self._clearings = 0

    @property
    def problem(self) -> str | None:
        return self._inner.problem

    @property
    def is_away(self) -> bool:
        return self._inner.is_away

    async def get(self, layer: LayerName, keys: Sequence[bytes]) -> list[bytes | None]:
        found = [self._copy(layer, key) for key in keys]
        missing = [key for key, one in zip(keys, found, strict=True) if one is None]
        if not missing:
            return found
        clearings = self._clearings
        asked = dict(zip(missing, await self._inner.get(layer, missing), strict=True))
        for place, key in enumerate(keys):
            if found[place] is not None:
                continue
            value = asked[key]
            if value is not None and clearings == self._clearings:
                self._keep(layer, key, value)
            elif value is None and self._inner.is_away:
                # It failed over this very question.
                value = self._copy(layer, key)
            found[place] = value
        return found

    async def put(self, layer: LayerName, bucket: str, values: Mapping[bytes, bytes]) -> None:
        # First, so that whoever asks here at once finds it.
        for key, value in values.items():
            self._keep(layer, key, value)
        await self._inner.put(layer, bucket, values)

    async def clear(self, layer: LayerName, bucket: str | None = None) -> int:
        # Before and after: what is read in the meantime may be what is just being removed.
        self._forget(layer)
        removed = await self._inner.clear(layer, bucket)
        self._forget(layer)
        return removed

    async def held(self) -> Mapping[LayerName, Held]:
        return await self._inner.held()

    def _copy(self, layer: LayerName, key: bytes) -> bytes | None:
        kept_until, value = self._copies.get((layer, key), (0.0, None))
        if value is None or (kept_until < time.monotonic() and not self._inner.is_away):
            return None
        self._copies.move_to_end((layer, key))
        return value

    def _keep(self, layer: LayerName, key: bytes, value: bytes) -> None:
        _, before = self._copies.pop((layer, key), (0.0, None))
        if before is not None:
            self._bytes -= len(before) + OVERHEAD_BYTES
        self._copies[layer, key] = (time.monotonic() + FRESH_SECONDS, value)
        self._bytes += len(value) + OVERHEAD_BYTES
        while self._bytes > self._max_bytes:
            _, (_, gone) = self._copies.popitem(last=False)
            self._bytes -= len(gone) + OVERHEAD_BYTES

    def _forget(self, layer: LayerName) -> None:
        self._clearings += 1
        for name in [name for name in self._copies if name[0] == layer]:
            _, value = self._copies.pop(name)
            self._bytes -= len(value) + OVERHEAD_BYTES
