"""The model servers: what they do, whether they are well, and how they come and go."""

from time import perf_counter

from fastapi import APIRouter

from app.api.bodies import BodyRoute
from app.api.problems import DOCUMENTED
from app.api.schemas_instances import (
    InstanceChanges,
    InstanceHealthInfo,
    InstanceInfo,
    InstanceList,
    InstanceModelInfo,
    LoadBalancerStats,
    OllamaHealth,
    PercentilesInfo,
    QueueInfo,
)
from app.dependencies import PoolDep
from app.llm.base import InstanceHealth
from app.llm.statistics import InstanceStatistics, ModelStatistics, Percentiles

LIVE_CHECK_SECONDS = 0.15

router = APIRouter(route_class=BodyRoute, tags=["operation"], responses=DOCUMENTED)


@router.get("/api/load-balancer-stats")
async def read_statistics(pool: PoolDep) -> LoadBalancerStats:
    """What the pool has done and learnt, from this process's memory."""
    known = pool.statistics()
    return LoadBalancerStats(
        model=known.model,
        requests=known.requests,
        completed=known.completed,
        queue=QueueInfo(
            waiting_interactive=known.waiting["interactive"],
            waiting_batch=known.waiting["batch"],
            expected_wait_ms=_ms(known.expected_wait_seconds),
        ),
        queue_wait_ms=_percentiles_ms(known.queue_seconds),
        first_token_ms=_percentiles_ms(known.first_token_seconds),
        token_gap_ms=_percentiles_ms(known.gap_seconds),
        choice_ms=_percentiles_ms(known.choice_seconds),
        prediction_ratio=_percentiles(known.prediction_ratio, 1),
        failovers=known.failovers,
        shed=known.shed,
        hedges=known.hedges,
        processes=known.processes,
        slots_shared=known.slots_shared,
        instances=[_instance_info(one) for one in known.instances],
    )


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
        took_ms=_ms(perf_counter() - started),
        instances=found,
    )


@router.patch("/api/admin/instances")
async def change_instances(body: InstanceChanges, pool: PoolDep) -> InstanceList:
    """Add, drain or remove model servers, or change their slots; no stream is cut for it.

    It holds for this process until it starts again; what holds for all and for ever stands in the
    configuration.
    """
    for change in body.instances:
        pool.change(change.url, slots=change.slots, state=change.state)
    return InstanceList(instances=[_instance_info(one) for one in pool.statistics().instances])


def _instance_info(one: InstanceStatistics) -> InstanceInfo:
    return InstanceInfo(
        instance=one.instance,
        state=one.state,
        slots=one.slots,
        configured_slots=one.configured_slots,
        in_flight=one.in_flight,
        in_flight_elsewhere=one.in_flight_elsewhere,
        served=one.served,
        failed=one.failed,
        abandoned=one.abandoned,
        loads=one.loads,
        ejections=one.ejections,
        hidden_wait_ms=_ms(one.hidden_wait_seconds),
        prompt_tokens=one.prompt_tokens,
        completion_tokens=one.completion_tokens,
        prefix_hit_rate=round(one.cached_tokens / max(1, one.prompt_tokens), 4),
        models=[_model_info(model) for model in one.models],
    )


def _model_info(one: ModelStatistics) -> InstanceModelInfo:
    return InstanceModelInfo(
        model=one.model,
        resident=one.resident,
        prompt_tokens_per_second=_rounded(one.prompt_tokens_per_second),
        completion_tokens_per_second=_rounded(one.completion_tokens_per_second),
        slowdown_per_request=round(one.slowdown_per_request, 3),
        load_ms=None if one.load_seconds is None else _ms(one.load_seconds),
    )


def _health_info(one: InstanceHealth) -> InstanceHealthInfo:
    is_well = one.reachable and one.has_model and not one.ejected
    return InstanceHealthInfo(
        instance=one.instance,
        status="ok" if is_well else "degraded" if one.reachable else "down",
        reason=one.reason,
        latency_ms=_rounded(one.latency_ms),
        version=one.version,
        has_model=one.has_model,
        models=one.models,
        resident_models=one.resident_models,
        slots=one.slots,
        in_flight=one.in_flight,
        ejected=one.ejected,
    )


def _percentiles_ms(seconds: Percentiles | None) -> PercentilesInfo | None:
    return _percentiles(seconds, 1000)


def _percentiles(found: Percentiles | None, factor: float) -> PercentilesInfo | None:
    if found is None:
        return None
    return PercentilesInfo(
        p50=round(found.p50 * factor, 3),
        p95=round(found.p95 * factor, 3),
        p99=round(found.p99 * factor, 3),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
