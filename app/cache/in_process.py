"""Cached values in this process, where there is no Redis at all: the same, and gone with it."""

import random
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from cachetools import LFUCache

from app.cache.base import LAYERS, Bounds, Held, LayerName
from app.cache.store import JITTER

SHARE = 0.125
"""Of the bounds that a Redis has: every process has a store of its own."""


class InProcessStore:
    """Implements Store. What was not used longest, counted by use, goes first, per bucket."""

    problem: str | None = None
    is_away = False

    def __init__(self, bounds: Mapping[LayerName, Bounds]) -> None:
        self._bounds = bounds
        self._buckets: dict[LayerName, dict[str, Any]] = {layer: {} for layer in LAYERS}
        self._bucket_of: dict[tuple[LayerName, bytes], str] = {}
        self._evictions = dict.fromkeys(LAYERS, 0)

    async def get(self, layer: LayerName, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._get(layer, key) for key in keys]

    async def put(self, layer: LayerName, bucket: str, values: Mapping[bytes, bytes]) -> None:
        bounds = self._bounds[layer]
        for key, value in values.items():
            if len(value) > bounds.entry_bytes * SHARE:
                continue
            lives = bounds.ttl_seconds * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311
            kept = self._bucket(layer, bucket)
            kept[key] = (time.monotonic() + lives, value)
            self._bucket_of[layer, key] = bucket

    async def clear(self, layer: LayerName, bucket: str | None = None) -> int:
        names = [bucket] if bucket is not None else list(self._buckets[layer])
        removed = 0
        for name in names:
            gone = self._buckets[layer].pop(name, {})
            removed += len(gone)
            for key in gone:
                self._bucket_of.pop((layer, key), None)
        return removed

    async def held(self) -> Mapping[LayerName, Held]:
        return {
            layer: Held(
                entries=sum(map(len, buckets.values())),
                bytes=int(sum(bucket.currsize for bucket in buckets.values())),
                evictions=self._evictions[layer],
            )
            for layer, buckets in self._buckets.items()
        }

    def _get(self, layer: LayerName, key: bytes) -> bytes | None:
        bucket = self._bucket_of.get((layer, key))
        if bucket is None:
            return None
        kept = self._bucket(layer, bucket)
        found: tuple[float, bytes] | None = kept.get(key)
        if found is None:
            return None
        if found[0] < time.monotonic():
            del kept[key]
            return None
        return found[1]

    def _bucket(self, layer: LayerName, name: str) -> Any:
        buckets = self._buckets[layer]
        if name not in buckets:
            max_bytes = self._bounds[layer].bucket_bytes * SHARE
            buckets[name] = _Bucket(max_bytes, partial(self._evicted, layer))
        return buckets[name]

    def _evicted(self, layer: LayerName, key: bytes) -> None:
        self._evictions[layer] += 1
        self._bucket_of.pop((layer, key), None)


class _Bucket(LFUCache):  # pyright: ignore[reportMissingTypeArgument, reportUntypedBaseClass]
    def __init__(self, max_bytes: float, evicted: Any) -> None:
        super().__init__(max_bytes, getsizeof=lambda kept: len(kept[1]))  # pyright: ignore[reportUnknownMemberType, reportUnknownLambdaType, reportUnknownArgumentType]
        self._note = evicted

    def popitem(self) -> Any:
        item: Any = super().popitem()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        self._note(item[0])
        return item
