"""Limits hold with Redis, without it, and while it hangs."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from pydantic import SecretStr
from redis.asyncio import Redis

from app.api import rate_limit
from app.api.rate_limit import RateLimits, TooMany
from app.cache.embedded import EmbeddedRedis
from app.config import Settings
from app.errors import StartupError
from app.resources import open_redis
from tests.doubles.socket_proxy import SocketProxy


@pytest.fixture
async def redis(settings: Settings, tmp_path: Path) -> AsyncIterator[Redis]:
    server = EmbeddedRedis(tmp_path)
    url = server.start()
    assert url is not None, "the development environment brings a Redis along"
    # A busy machine must not look like a Redis that hangs.
    patient = settings.model_copy(update={"redis_timeout_seconds": 5.0})
    async with client_of(patient, url) as client:
        yield client
    server.stop()


@asynccontextmanager
async def client_of(settings: Settings, url: str) -> AsyncIterator[Redis]:
    client = open_redis(settings.model_copy(update={"redis_url": SecretStr(url)}))
    assert client is not None
    yield client
    await client.aclose()


def limits(settings: Settings, redis: Redis | None, **changes: Any) -> RateLimits:
    return RateLimits(settings.model_copy(update=changes), redis)


def is_degraded() -> bool:
    return REGISTRY.get_sample_value("footnote_degraded", {"part": "rate_limit"}) == 1


async def test_one_too_many_is_refused_and_told_when_to_come_back(settings: Settings) -> None:
    local = limits(settings, None, rate_limit="3/minute")

    left = [(await local.take("requests", "key:a")).remaining for _ in range(3)]
    with pytest.raises(TooMany) as refused:
        await local.take("requests", "key:a")

    assert left == [2, 1, 0]
    assert refused.value.status == 429
    headers = refused.value.headers
    assert headers["X-RateLimit-Limit"] == "3"
    assert headers["X-RateLimit-Remaining"] == "0"
    assert 0 < int(headers["X-RateLimit-Reset"]) - time.time() <= 61
    assert 1 <= int(headers["Retry-After"]) <= 60
    # Somebody else, and another kind of call, are not concerned.
    assert (await local.take("requests", "key:b")).remaining == 2
    assert (await local.take("uploads", "key:a")).remaining == 5999


async def test_a_window_ends(settings: Settings) -> None:
    local = limits(settings, None, rate_limit="1/second")
    await local.take("requests", "key:a")
    with pytest.raises(TooMany):
        await local.take("requests", "key:a")
    await asyncio.sleep(1.1)
    await local.take("requests", "key:a")


async def test_the_tightest_of_several_limits_is_told(settings: Settings) -> None:
    local = limits(settings, None, rate_limit="2/second;100/minute")
    assert (await local.take("requests", "key:a")).limit == 2
    await local.take("requests", "key:a")
    with pytest.raises(TooMany, match="limit of 2"):
        await local.take("requests", "key:a")


async def test_processes_share_one_count_in_redis(settings: Settings, redis: Redis) -> None:
    patient = settings.model_copy(update={"redis_timeout_seconds": 5.0})
    one = limits(patient, redis, rate_limit="10/minute")
    other = limits(patient, redis, rate_limit="10/minute")

    allowed = await asyncio.gather(
        *(each.take("requests", "key:a") for each in (one, other) for _ in range(10)),
        return_exceptions=True,
    )

    assert sum(isinstance(each, TooMany) for each in allowed) == 10
    left = sorted(each.remaining for each in allowed if isinstance(each, rate_limit.Allowance))
    assert left == list(range(10))
    resets = {each.reset_at for each in allowed if isinstance(each, rate_limit.Allowance)}
    assert max(resets) - min(resets) < 2


async def test_of_a_large_limit_few_calls_ask_redis(settings: Settings, redis: Redis) -> None:
    patient = settings.model_copy(update={"redis_timeout_seconds": 5.0})
    one = limits(patient, redis, rate_limit="5000/minute")
    other = limits(patient, redis, rate_limit="5000/minute")

    before = (await redis.info("stats"))["total_commands_processed"]
    left = [(await one.take("requests", "key:a")).remaining for _ in range(10)]
    asked = (await redis.info("stats"))["total_commands_processed"] - before
    first_of_other = await other.take("requests", "key:a")

    assert left == list(range(4999, 4989, -1))
    # Blocks of five: two scripts with their commands. One by one it would be ten.
    assert asked < 12
    assert first_of_other.remaining == 4989
    # Never more than the limit between them, and what is lost to blocks is less than one each.
    allowed = 11
    for _ in range(520):
        outcomes = await asyncio.gather(
            *(each.take("requests", "key:a") for each in (one, other) for _ in range(5)),
            return_exceptions=True,
        )
        allowed += sum(isinstance(each, rate_limit.Allowance) for each in outcomes)
    assert 4990 <= allowed <= 5000


async def test_a_redis_that_hangs_costs_one_request_its_timeout(settings: Settings) -> None:
    async with (
        SocketProxy(mode="hangs") as hanging,
        client_of(settings, f"redis://127.0.0.1:{hanging.port}") as client,
    ):
        hung = limits(settings, client, rate_limit="3/minute")

        started = time.perf_counter()
        for _ in range(3):
            await hung.take("requests", "key:a")
        took_seconds = time.perf_counter() - started
        with pytest.raises(TooMany):
            await hung.take("requests", "key:a")

        # The first call alone waited, for 50 ms; the rest is what a busy machine may take.
        assert hanging.connections_count == 1
        assert took_seconds < 1
        assert is_degraded()


async def test_one_request_alone_tries_whether_redis_is_back(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limit, "RETRY_REDIS_SECONDS", 0.3)
    path = Path(redis.connection_pool.connection_kwargs["path"])
    patient = settings.model_copy(update={"redis_timeout_seconds": 0.5})
    async with (
        SocketProxy(path) as proxy,
        client_of(patient, f"redis://127.0.0.1:{proxy.port}") as client,
    ):
        counted = limits(patient, client, rate_limit="100/minute")
        await counted.take("requests", "key:a")
        proxy.mode = "hangs"
        await counted.take("requests", "key:a")
        assert is_degraded()

        await asyncio.sleep(0.35)
        before = proxy.connections_count
        await asyncio.gather(*(counted.take("requests", "key:a") for _ in range(20)))
        assert proxy.connections_count == before + 1

        proxy.mode = "passes"
        proxy.cut()
        await asyncio.sleep(0.35)
        back = await counted.take("requests", "key:a")
        assert not is_degraded()
        # In Redis stands the first call, and this one.
        assert back.remaining == 98


def test_a_limit_that_is_none_stops_the_start(settings: Settings) -> None:
    with pytest.raises(StartupError, match="FOOTNOTE_RATE_LIMIT"):
        limits(settings, None, rate_limit="often")
    with pytest.raises(StartupError, match="FOOTNOTE_UPLOAD_RATE_LIMIT"):
        limits(settings, None, upload_rate_limit="")
