"""Values in Redis and in the process: kept, bounded, and never a reason for anything to fail."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr

from app.cache import breaker
from app.cache.base import Bounds, LayerName, Store
from app.cache.in_process import InProcessStore
from app.cache.near import NearStore
from app.cache.store import RedisStore, open_clients
from app.config import Settings
from tests.redis_server import RedisServer, needs_redis, running_redis

pytestmark = needs_redis

TIMEOUT_SECONDS = 0.05
MARGIN_SECONDS = 0.15
"""For what else this machine does meanwhile."""

BOUNDS = Bounds(ttl_seconds=60, layer_bytes=40_000, bucket_bytes=20_000, entry_bytes=4_000)


def bounds(**changes: Any) -> dict[LayerName, Bounds]:
    fields = {name: getattr(BOUNDS, name) for name in BOUNDS.__slots__}
    own = Bounds(**{**fields, **changes})
    return {"embedding": own, "chunks": own, "answer": own}


@asynccontextmanager
async def opened(redis_server: RedisServer, **changes: Any) -> AsyncIterator[RedisStore]:
    clients = open_clients(Settings(redis_url=SecretStr(redis_server.url)))
    assert clients is not None
    yield RedisStore(clients, bounds(**changes), timeout_seconds=TIMEOUT_SECONDS)
    for client in clients:
        await client.aclose(close_connection_pool=True)


@pytest.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    async with opened(redis_server) as one:
        yield one


@pytest.fixture(params=["redis", "in-process"])
async def any_store(
    request: pytest.FixtureRequest, redis_server: RedisServer
) -> AsyncIterator[Store]:
    """Both have the same contract; the one in the process has an eighth of the bounds."""
    if request.param == "redis":
        async with opened(redis_server) as one:
            yield one
    else:
        grown = {name: getattr(BOUNDS, name) * 8 for name in BOUNDS.__slots__}
        own = Bounds(**{**grown, "ttl_seconds": BOUNDS.ttl_seconds})
        yield InProcessStore({"embedding": own, "chunks": own, "answer": own})


def key(number: int) -> bytes:
    return number.to_bytes(20)


# --- the contract ---------------------------------------------------------------------------------


async def test_what_is_kept_is_found_in_its_layer_in_the_order_asked(any_store: Store) -> None:
    await any_store.put("answer", "1", {key(1): b"one", key(2): b"two"})
    assert await any_store.get("answer", [key(2), key(3), key(1)]) == [b"two", None, b"one"]
    assert await any_store.get("chunks", [key(1)]) == [None]
    assert await any_store.get("answer", []) == []


async def test_a_value_that_is_kept_again_counts_once(any_store: Store) -> None:
    for value in (b"one", b"another", b"one"):
        await any_store.put("chunks", "1", {key(1): value})
    held = (await any_store.held())["chunks"]
    assert held.entries == 1
    assert await any_store.get("chunks", [key(1)]) == [b"one"]


async def test_a_bucket_is_cleared_alone_and_a_layer_whole(any_store: Store) -> None:
    await any_store.put("answer", "1", {key(1): b"one", key(2): b"two"})
    await any_store.put("answer", "2", {key(3): b"three"})
    await any_store.put("chunks", "1", {key(1): b"one"})
    assert await any_store.clear("answer", "1") == 2
    assert await any_store.get("answer", [key(1), key(3)]) == [None, b"three"]
    assert await any_store.clear("answer") == 1
    assert await any_store.get("answer", [key(3)]) == [None]
    assert await any_store.get("chunks", [key(1)]) == [b"one"]
    assert (await any_store.held())["answer"].entries == 0


async def test_what_is_too_large_for_an_entry_is_not_kept(any_store: Store) -> None:
    await any_store.put("answer", "1", {key(1): bytes(4_001), key(2): bytes(3_000)})
    assert await any_store.get("answer", [key(1), key(2)]) == [None, bytes(3_000)]


async def test_one_tenant_evicts_his_own_values_only_and_the_least_used(any_store: Store) -> None:
    await any_store.put("answer", "2", {key(1000): bytes(1_000)})
    await any_store.put("answer", "1", {key(0): bytes(1_000)})
    for number in range(1, 60):
        # Redis counts uses by chance above a few of them.
        await any_store.get("answer", [key(0)] * 20)
        await any_store.put("answer", "1", {key(number): bytes(1_000)})
    held = (await any_store.held())["answer"]
    assert held.bytes <= BOUNDS.bucket_bytes + 1_500
    assert held.evictions >= 40
    assert await any_store.get("answer", [key(1000)]) == [bytes(1_000)]
    assert await any_store.get("answer", [key(0)]) == [bytes(1_000)]


# --- in Redis --------------------------------------------------------------------------------------


async def test_layers_lie_in_their_databases_with_their_time(
    store: RedisStore, redis_server: RedisServer
) -> None:
    for layer in ("embedding", "answer", "chunks"):
        await store.put(layer, "1", {key(1): b"one"})
    first, second = redis_server.client(0), redis_server.client(1)
    assert first.exists(b"fn:embedding:" + key(1), b"fn:answer:" + key(1)) == 2
    assert second.keys("fn:chunks:*") != []
    assert first.keys("fn:chunks:*") == []
    assert 60 * 0.9 * 1000 - 1000 < first.pttl(b"fn:answer:" + key(1)) <= 60 * 1.1 * 1000


async def test_lifetimes_differ_a_little(store: RedisStore, redis_server: RedisServer) -> None:
    await store.put("answer", "1", {key(number): b"x" for number in range(50)})
    lives = [redis_server.client().pttl(b"fn:answer:" + key(number)) for number in range(50)]
    assert max(lives) - min(lives) > 60_000 * 0.1


async def test_the_layer_as_a_whole_is_bounded_too(redis_server: RedisServer) -> None:
    async with opened(redis_server) as store:
        for tenant in range(4):
            for number in range(15):
                one = key(100 * tenant + number)
                await store.put("answer", str(tenant), {one: bytes(1_000)})
        assert (await store.held())["answer"].bytes <= BOUNDS.layer_bytes + 1_500


async def test_what_expired_leaves_the_accounts(redis_server: RedisServer) -> None:
    async with opened(redis_server, ttl_seconds=0.05) as store:
        for number in range(30):
            await store.put("answer", "1", {key(number): bytes(100)})
        await asyncio.sleep(0.1)
        for number in range(40):
            await store.put("answer", "1", {key(1000 + number): bytes(10)})
        assert (await store.held())["answer"].entries <= 55


async def test_accounts_that_were_evicted_begin_again(
    store: RedisStore, redis_server: RedisServer
) -> None:
    for number in range(15):
        await store.put("answer", "1", {key(number): bytes(1_000)})
    redis_server.client().delete("fn:answer:held:1")
    for number in range(100, 110):
        await store.put("answer", "1", {key(number): bytes(1_000)})
    assert await store.get("answer", [key(109)]) == [bytes(1_000)]
    assert (await store.held())["answer"].bytes <= BOUNDS.bucket_bytes + 1_500


# --- Redis in trouble -------------------------------------------------------------------------------


async def timed(store: Store) -> tuple[float, list[bytes | None]]:
    started = time.monotonic()
    found = await store.get("answer", [key(1)])
    await store.put("answer", "1", {key(2): b"two"})
    return time.monotonic() - started, found


@pytest.mark.parametrize("trouble", ["killed", "paused", "password", "absent"])
async def test_a_redis_that_is_away_costs_one_short_wait_and_is_found_again(
    trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "FIRST_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(breaker, "LONGEST_PAUSE_SECONDS", 0.2)
    with running_redis() as redis_server:
        async with opened(redis_server) as store:
            if trouble != "absent":
                await store.put("answer", "1", {key(1): b"one"})
                assert await store.get("answer", [key(1)]) == [b"one"]
            if trouble in ("killed", "absent"):
                redis_server.kill()
            elif trouble == "paused":
                redis_server.pause()
            else:
                redis_server.client().config_set("requirepass", "secret")
                redis_server.client(password="secret").client_kill_filter(
                    _type="normal", skipme=True
                )
            near = NearStore(store)
            seconds, found = await timed(near)
            assert found == [None]
            assert seconds < TIMEOUT_SECONDS + MARGIN_SECONDS
            assert store.is_away
            assert store.problem is not None
            assert await near.get("answer", [key(2)]) == [
                b"two"
            ]  # in the process, as long as it lasts
            # Now nobody waits for it.
            started = time.monotonic()
            for _ in range(200):
                await store.get("answer", [key(1)])
            assert time.monotonic() - started < 5 * TIMEOUT_SECONDS + MARGIN_SECONDS
            if trouble in ("killed", "absent"):
                redis_server.start()
            elif trouble == "paused":
                redis_server.resume()
            else:
                redis_server.client(password="secret").config_set("requirepass", "")
            async with asyncio.timeout(5):
                while store.is_away:
                    await store.get("answer", [key(1)])
                    await asyncio.sleep(0.02)
            assert store.problem is None
            await store.put("answer", "1", {key(3): b"three"})
            assert await store.get("answer", [key(3)]) == [b"three"]


async def test_a_full_redis_still_gives_what_it_has(redis_server: RedisServer) -> None:
    with running_redis("--maxmemory", "2mb", "--maxmemory-policy", "noeviction") as small:
        async with opened(small, layer_bytes=10**9, bucket_bytes=10**9) as store:
            await store.put("answer", "1", {key(1): b"one"})
            small.client().config_set("maxmemory", "1")
            await store.put("answer", "1", {key(2): b"two"})
            assert store.problem is not None
            assert not store.is_away
            assert await store.get("answer", [key(1), key(2)]) == [b"one", None]
            small.client().config_set("maxmemory", "10mb")
            await store.put("answer", "1", {key(2): b"two"})
            assert store.problem is None


async def test_a_flushed_redis_has_nothing_and_works_on(
    store: RedisStore, redis_server: RedisServer
) -> None:
    await store.put("answer", "1", {key(1): b"one"})
    redis_server.client().flushall()
    redis_server.client().script_flush()
    assert await store.get("answer", [key(1)]) == [None]
    await store.put("answer", "1", {key(1): b"one"})
    assert await store.get("answer", [key(1)]) == [b"one"]
    assert store.problem is None
