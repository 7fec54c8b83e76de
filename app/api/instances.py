"""The model servers: what they do, whether they are well, and how they come and go."""

from dataclasses import asdict
from time import perf_counter

from fastapi import APIRouter

from app.api.bodies import BodyRoute
from app.api.problems import DOCUMENTED
from app.api.schemas_instances import (
    InstanceChanges,
    InstanceHealthInfo,
    InstanceList,
    OllamaHealth,
    StandingChange,
)
from app.dependencies import ModelServersDep, PoolDep
from app.llm.base import InstanceHealth
from app.llm.following import ModelServers
from app.llm.pool import GenerationPool
from app.llm.statistics import PoolStatistics, milliseconds

LIVE_CHECK_SECONDS = 0.15

router = APIRouter(route_class=BodyRoute, tags=["operation"], responses=DOCUMENTED)


@router.get("/api/load-balancer-stats")
async def read_statistics(pool: PoolDep) -> PoolStatistics:
    """What the pool has done and learnt, from this process's memory."""
    return pool.statistics()


@router.get("/api/ollama-health")
async def check_instances(pool: PoolDep) -> OllamaHealth:
    """Every model server, asked now and side by side; whoever takes too long is down."""
    started = perf_counter()
    found = [_health_info(one) for one in await pool.health(timeout_seconds=LIVE_CHECK_SECONDS)]
    healthy = sum(one.status == "ok" for one in found)
    return OllamaHealth(
        status="ok" if healthy == len(found) else "degraded" if healthy else "down",
        model=pool.name,
        healthy=healthy,
        total=len(found),
        took_ms=milliseconds(perf_counter() - started),
        instances=found,
    )


@router.get("/api/admin/instances")
async def list_instances(pool: PoolDep, servers: ModelServersDep) -> InstanceList:
    """The model servers, and what holds for them otherwise than the configuration says."""
    return _listed(pool, servers)


@router.patch("/api/admin/instances")
async def change_instances(
    body: InstanceChanges, pool: PoolDep, servers: ModelServersDep
) -> InstanceList:
    """Add, drain or remove model servers, or change their slots; no stream is cut for it.

    All processes follow within two seconds. It holds on top of the configuration, over restarts
    too, until the server is `configured` again.
    """
    await servers.change([(one.url, one.slots, one.state) for one in body.instances])
    return _listed(pool, servers)


def _listed(pool: GenerationPool, servers: ModelServers) -> InstanceList:
    return InstanceList(
        instances=pool.statistics().instances,
        changes=[StandingChange(**asdict(one)) for one in servers.changes],
    )


def _health_info(one: InstanceHealth) -> InstanceHealthInfo:
    is_well = one.reachable and one.has_model and not one.ejected
    return InstanceHealthInfo(
        instance=one.instance,
        status="ok" if is_well else "degraded" if one.reachable else "down",
        reason=one.reason,
        latency_ms=None if one.latency_ms is None else round(one.latency_ms, 2),
        version=one.version,
        has_model=one.has_model,
        models=one.models,
        resident_models=one.resident_models,
        slots=one.slots,
        in_flight=one.in_flight,
        ejected=one.ejected,
    )
