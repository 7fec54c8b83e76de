"""The caches: what they do, and how to empty them."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from app.api.problems import DOCUMENTED
from app.api.schemas_cache import (
    CacheRemoval,
    CacheStats,
    HitRates,
    LatencyInfo,
    LayerInfo,
    LayersInfo,
    MissReasons,
    SavedInfo,
)
from app.cache.base import LAYERS, LayerName
from app.cache.report import LayerReport
from app.dependencies import CachesDep, CallerDep

router = APIRouter(tags=["operation"], responses=DOCUMENTED)


@router.get("/api/advanced-cache-stats")
async def read_cache_stats(caches: CachesDep) -> CacheStats:
    """Each layer's hits, misses and their reasons, size, speed, and what it saved."""
    currency = caches.settings.currency
    layers = {
        name: _layer_info(
            await caches.reports.of(name), enabled=caches.is_on(name), currency=currency
        )
        for name in LAYERS
    }
    problem = caches.store.problem
    return CacheStats(
        store="redis" if caches.in_redis else "in-process",
        status="ok" if problem is None else "degraded",
        reason=problem,
        layers=LayersInfo(**layers),
    )


@router.delete("/api/admin/cache")
async def clear_cache(
    caller: CallerDep,
    caches: CachesDep,
    layer: Annotated[
        LayerName | Literal["all"], Query(description="Which layer to empty.")
    ] = "all",
) -> CacheRemoval:
    """Forget answers and retrievals of the caller's tenant; vectors, which are nobody's, all."""
    chosen: tuple[LayerName, ...] = LAYERS if layer == "all" else (layer,)
    return CacheRemoval(**{name: await caches.clear(name, caller.tenant_id) for name in chosen})


def _layer_info(report: LayerReport, *, enabled: bool, currency: str) -> LayerInfo:
    return LayerInfo(
        enabled=enabled,
        hits=report.hits,
        misses=report.misses,
        hit_rate=HitRates(
            last_minute=report.rate_minute, last_hour=report.rate_hour, all=report.rate_all
        ),
        entries=report.held.entries,
        bytes=report.held.bytes,
        evictions=report.held.evictions,
        latency=LatencyInfo(mean_ms=report.latency_mean_ms, p95_ms=report.latency_p95_ms),
        joined=report.joined,
        missed=MissReasons(**report.missed),
        saved=SavedInfo(
            seconds=report.saved_seconds,
            tokens=report.saved_tokens,
            cost=report.saved_cost,
            currency=currency,
        ),
    )
