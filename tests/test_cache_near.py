"""Copies in the process: as good as Redis, gone when it is told so, and there while it is away."""

from collections.abc import Mapping, Sequence

import pytest

from app.cache import near as module
from app.cache.base import Bounds, Held, LayerName
from app.cache.in_process import InProcessStore
from app.cache.near import NearStore

BOUNDS = Bounds(ttl_seconds=60, layer_bytes=10**6, bucket_bytes=10**6, entry_bytes=10**5)


class Far:
    """A store that counts what it is asked for, and can be away."""

    def __init__(self) -> None:
        self.inner = InProcessStore(dict.fromkeys(("embedding", "chunks", "answer"), BOUNDS))
        self.asked: list[bytes] = []
        self.is_away = False
        self.problem: str | None = None

    async def get(self, layer: LayerName, keys: Sequence[bytes]) -> list[bytes | None]:
        self.asked += keys
        return [None] * len(keys) if self.is_away else await self.inner.get(layer, keys)

    async def put(self, layer: LayerName, bucket: str, values: Mapping[bytes, bytes]) -> None:
        if not self.is_away:
            await self.inner.put(layer, bucket, values)

    async def clear(self, layer: LayerName, bucket: str | None = None) -> int:
        return await self.inner.clear(layer, bucket)

    async def held(self) -> Mapping[LayerName, Held]:
        return await self.inner.held()


@pytest.fixture
def far() -> Far:
    return Far()


async def test_what_is_near_is_not_asked_for_again(far: Far) -> None:
    await far.put("answer", "1", {b"a": b"A", b"b": b"B"})
    near = NearStore(far)
    assert await near.get("answer", [b"a", b"c"]) == [b"A", None]
    assert await near.get("answer", [b"c", b"a", b"b"]) == [None, b"A", b"B"]
    assert far.asked == [b"a", b"c", b"c", b"b"]
    assert await near.get("chunks", [b"a"]) == [None]


async def test_it_is_asked_for_anew_after_a_while(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FRESH_SECONDS", -1.0)
    near = NearStore(far)
    await near.put("answer", "1", {b"a": b"A"})
    assert await near.get("answer", [b"a"]) == [b"A"]
    await far.clear("answer")  # in another process
    assert await near.get("answer", [b"a"]) == [None]


async def test_while_the_store_is_away_copies_serve(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FRESH_SECONDS", -1.0)
    near = NearStore(far)
    await near.put("answer", "1", {b"a": b"A"})
    far.is_away = True
    await near.put("answer", "1", {b"b": b"B"})
    assert await near.get("answer", [b"a", b"b", b"c"]) == [b"A", b"B", None]


async def test_what_is_cleared_is_forgotten_here_at_once(far: Far) -> None:
    near = NearStore(far)
    await near.put("answer", "1", {b"a": b"A"})
    await near.put("chunks", "1", {b"a": b"C"})
    assert await near.clear("answer", "1") == 1
    assert await near.get("answer", [b"a"]) == [None]
    assert await near.get("chunks", [b"a"]) == [b"C"]


async def test_what_was_read_before_it_was_cleared_is_not_kept(far: Far) -> None:
    await far.put("answer", "1", {b"a": b"A"})
    near = NearStore(far)
    read = far.get

    async def slow(layer: LayerName, keys: Sequence[bytes]) -> list[bytes | None]:
        found = await read(layer, keys)
        await near.clear("answer")
        return found

    far.get = slow
    assert await near.get("answer", [b"a"]) == [b"A"]
    far.get = read
    assert await near.get("answer", [b"a"]) == [None]


async def test_the_copies_used_least_recently_go_first(far: Far) -> None:
    near = NearStore(far, max_bytes=3 * (module.OVERHEAD_BYTES + 1))
    for key in (b"a", b"b", b"c"):
        await near.put("answer", "1", {key: key})
    await near.get("answer", [b"a"])
    await near.put("answer", "1", {b"d": b"d"})
    await far.clear("answer")
    assert await near.get("answer", [b"a", b"b", b"c", b"d"]) == [b"a", None, b"c", b"d"]
