"""Is it alive, is it ready, and what is wrong with which part."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from time import monotonic, perf_counter
from typing import Annotated, Generic, TypeVar

import structlog
from fastapi import APIRouter, Depends, Request, Response
from redis.exceptions import RedisError
from sqlalchemy import text

from app.api.schemas import (
    Checks,
    DatabaseCheck,
    EmbeddingCheck,
    HealthReply,
    Liveness,
    ModelServersCheck,
    ProviderInfo,
    ProvidersCheck,
    QueueCheck,
    Readiness,
    RedisCheck,
)
from app.errors import FootnoteError
from app.language_models import OLLAMA
from app.llm.base import InstanceHealth
from app.llm.catalogue import ModelInUse
from app.llm.digests import with_tag
from app.llm.hosted import ProviderHealth
from app.patience import patience
from app.resources import Resources
from app.telemetry import DEGRADED

VERSION = version("footnote")

CHECK_TIMEOUT_SECONDS = 1.0
FRESH_SECONDS = 0.5
MODEL_SERVERS_FRESH_SECONDS = 3.0
PROVIDERS_FRESH_SECONDS = 60.0
"""Others' services are not to be asked at every scrape."""
MODELS_SHOWN = 50
NO_ANSWER = "no answer"

Value = TypeVar("Value")

router = APIRouter(tags=["operation"])
log = structlog.get_logger(__name__)


class Health:
    """Asks every part, at most every FRESH_SECONDS however many want to know."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._known_models = frozenset[ModelInUse]()
        self._database = _Remembered(
            self._ask_database,
            late=DatabaseCheck(status="down", reason=NO_ANSWER),
            fresh_seconds=FRESH_SECONDS,
        )
        self._redis = _Remembered(
            self._ask_redis,
            late=RedisCheck(status="degraded", kind=resources.redis_kind, reason=NO_ANSWER),
            fresh_seconds=FRESH_SECONDS,
        )
        self._queue = _Remembered(
            self._ask_queue,
            late=QueueCheck(status="degraded", reason=NO_ANSWER),
            fresh_seconds=FRESH_SECONDS,
        )
        self._model_servers = _Remembered(
            self._ask_model_servers,
            late=ModelServersCheck(status="degraded", reason=NO_ANSWER),
            fresh_seconds=MODEL_SERVERS_FRESH_SECONDS,
        )

        self._providers = _Remembered(
            self._ask_providers,
            late=ProvidersCheck(status="degraded", reason=NO_ANSWER),
            fresh_seconds=PROVIDERS_FRESH_SECONDS,
        )

    async def close(self) -> None:
        for asked in (
            self._database,
            self._redis,
            self._queue,
            self._model_servers,
            self._providers,
        ):
            await asked.close()

    async def report(self) -> HealthReply:
        database, redis, queue = await asyncio.gather(
            self._database.fresh(), self._redis.fresh(), self._queue.fresh()
        )
        checks = Checks(
            database=database,
            redis=redis,
            # A server that hangs is asked in the background: the others' state does not wait.
            ollama=await self._model_servers.latest(),
            providers=await self._providers.latest(),
            embedding=self._embedding(),
            queue=queue,
        )
        troubled = {name for name, check in checks if check.status in ("degraded", "down")}
        for name in Checks.model_fields:
            DEGRADED.labels(name).set(name in troubled)
        if "down" in (database.status, checks.embedding.status):
            return HealthReply(status="down", checks=checks, version=VERSION)
        return HealthReply(status="degraded" if troubled else "ok", checks=checks, version=VERSION)

    async def readiness(self) -> Readiness:
        database = await self._database.fresh()
        return Readiness(ready=database.status == "ok", reason=database.reason)

    async def _ask_database(self) -> DatabaseCheck:
        problem = self._resources.database.problem
        if problem is not None:
            return DatabaseCheck(status="down", reason=problem.detail, hint=problem.hint)
        started = perf_counter()
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
                async with self._resources.monitor.connect() as connection:
                    await connection.execute(text("SELECT 1"))
        except Exception as error:  # noqa: BLE001 - whatever it is, the database is not there
            return DatabaseCheck(status="down", reason=f"{NO_ANSWER} ({type(error).__name__})")
        return DatabaseCheck(status="ok", latency_ms=_milliseconds_since(started))

    async def _ask_redis(self) -> RedisCheck:
        kind = self._resources.redis_kind
        if self._resources.redis is None:
            return RedisCheck(status="off", kind=kind)
        started = perf_counter()
        try:
            async with patience(self._resources.settings.redis_timeout_seconds):
                await self._resources.redis.ping()  # pyright: ignore[reportUnknownMemberType]
        except (RedisError, OSError, TimeoutError) as error:
            return RedisCheck(
                status="degraded", kind=kind, reason=f"{NO_ANSWER} ({type(error).__name__})"
            )
        latency_ms = _milliseconds_since(started)
        problem = self._resources.caches.store.problem
        return RedisCheck(
            status="ok" if problem is None else "degraded",
            kind=kind,
            latency_ms=latency_ms,
            reason=None if problem is None else f"the cache: {problem}",
        )

    async def _ask_queue(self) -> QueueCheck:
        if (await self._database.fresh()).status != "ok":
            return QueueCheck(status="down", reason="the queue is in the database")
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
                backlog = await self._resources.jobs.backlog()
        except (FootnoteError, TimeoutError) as error:
            return QueueCheck(status="degraded", reason=f"{NO_ANSWER} ({type(error).__name__})")
        return QueueCheck(
            status="ok" if backlog.workers else "degraded",
            reason=None
            if backlog.workers
            else "no worker is running: `footnote worker` starts one",
            queued=backlog.queued,
            processing=backlog.processing,
            oldest_seconds=round(backlog.oldest_seconds, 1),
            workers=backlog.workers,
        )

    async def _ask_model_servers(self) -> ModelServersCheck:
        if self._resources.chat_model is None:
            return ModelServersCheck(
                status="off", reason="no FOOTNOTE_OLLAMA_URLS: answers are quoted, not written"
            )
        servers, in_use = await asyncio.gather(
            self._resources.chat_model.health(), self._models_in_use()
        )
        return _check_of(servers, [one.upstream_name for one in in_use if one.provider == OLLAMA])

    async def _ask_providers(self) -> ProvidersCheck:
        in_use = frozenset(one.provider for one in await self._models_in_use())
        return _providers_check(await self._resources.providers.hosted.health(in_use))

    async def _models_in_use(self) -> frozenset[ModelInUse]:
        """Those of the configuration and those registered, as far as they are known."""
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_SECONDS / 2):
                self._known_models = await self._resources.registry.models_in_use()
        except (FootnoteError, TimeoutError) as error:
            # The database has a check of its own.
            log.info("registered_models_not_read", why=type(error).__name__)
        return self._known_models

    def _embedding(self) -> EmbeddingCheck:
        embedder = self._resources.query_embedder.embedder
        fell_back = (
            embedder.runtime == "torch" and self._resources.settings.embedding_runtime != "torch"
        )
        return EmbeddingCheck(
            status="degraded" if fell_back else "ok",
            reason="onnxruntime cannot run the model, torch does, slower" if fell_back else None,
            model=embedder.name,
            runtime=embedder.runtime,
            dimensions=embedder.dimensions,
        )


def _check_of(servers: Sequence[InstanceHealth], in_use: Sequence[str]) -> ModelServersCheck:
    usable = [one for one in servers if one.reachable and one.has_model and not one.ejected]
    reasons = [f"{one.instance}: {one.reason}" for one in servers if one.reason]
    if not servers:
        reasons.append("every server was removed by PATCH /api/admin/instances")
    for one in usable:
        lacking = sum(with_tag(name) not in one.models for name in in_use)
        if lacking:
            # Anybody may read this, and what tenants registered is theirs: doctor names it.
            reasons.append(f"{one.instance}: lacks {lacking} of {len(in_use)} models in use")
    return ModelServersCheck(
        status="down" if not usable else "degraded" if reasons else "ok",
        reason="; ".join(reasons) or None,
        servers=len(servers),
        usable=len(usable),
    )


def _providers_check(told: Sequence[ProviderHealth]) -> ProvidersCheck:
    healthy = sum(one.healthy for one in told)
    reasons = [f"{one.provider}: {one.reason}" for one in told if one.reason]
    return ProvidersCheck(
        status="off" if not told else "ok" if healthy == len(told) else "degraded",
        reason="; ".join(reasons) or None,
        configured=len(told),
        healthy=healthy,
        providers=[
            ProviderInfo(
                provider=one.provider,
                kind=one.kind,
                healthy=one.healthy,
                latency_ms=None if one.latency_ms is None else round(one.latency_ms, 2),
                models=None if one.models is None else [*one.models[:MODELS_SHOWN]],
                models_count=None if one.models is None else len(one.models),
                reason=one.reason,
            )
            for one in told
        ],
    )


class _Remembered(Generic[Value]):
    """The latest answer of `ask`, which never runs twice at a time.

    `late` stands for an answer that takes longer than CHECK_TIMEOUT_SECONDS: giving up on a server
    that hangs can itself take seconds.
    """

    def __init__(
        self, ask: Callable[[], Awaitable[Value]], *, late: Value, fresh_seconds: float
    ) -> None:
        self._ask = ask
        self._late = late
        self._fresh_seconds = fresh_seconds
        self._value: Value | None = None
        self._answered_at = 0.0
        self._asking: asyncio.Task[Value] | None = None

    async def fresh(self) -> Value:
        if self._value is not None and not self._is_old():
            return self._value
        asking = self._begin()
        await asyncio.wait({asking}, timeout=CHECK_TIMEOUT_SECONDS)
        return asking.result() if asking.done() else self._late

    async def latest(self) -> Value:
        """What was known last, asked for anew behind it; waits only when nothing is known."""
        if self._value is None:
            return await self.fresh()
        if self._is_old():
            self._begin()
        return self._value

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})

    def _is_old(self) -> bool:
        return monotonic() - self._answered_at >= self._fresh_seconds

    def _begin(self) -> "asyncio.Task[Value]":
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._run())
        return self._asking

    async def _run(self) -> Value:
        self._value = await self._ask()
        self._answered_at = monotonic()
        return self._value


def _milliseconds_since(started: float) -> float:
    return round((perf_counter() - started) * 1000, 2)


async def _health(request: Request) -> Health:
    health: Health = request.app.state.health
    return health


HealthDep = Annotated[Health, Depends(_health)]


@router.get("/health")
async def report_health(health: HealthDep, response: Response) -> HealthReply:
    """Every part, and the worst of them; 503 only when nothing can be answered."""
    report = await health.report()
    if report.status == "down":
        response.status_code = 503
    return report


@router.get("/health/live")
async def report_liveness() -> Liveness:
    """The process runs. Restart it when this does not answer."""
    return Liveness()


@router.get("/health/ready", responses={503: {"model": Readiness}})
async def report_readiness(health: HealthDep, response: Response) -> Readiness:
    """Send requests here only while this says 200."""
    readiness = await health.readiness()
    if not readiness.ready:
        response.status_code = 503
    return readiness
