"""The caches: what they do, and how to empty them."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from app.api.problems import DOCUMENTED
from app.api.schemas_cache import (
    AnswerLayerInfo,
    CacheRemoval,
    CacheStats,
    EmbeddingLayerInfo,
    HitRates,
    LatencyInfo,
    LayerInfo,
    LayersInfo,
    MissReasons,
    ParaphrasesInfo,
    RoutingHits,
    SavedInfo,
)
from app.cache.base import LAYERS, LayerName
from app.cache.report import LayerReport
from app.cache.tallies import Tally
from app.dependencies import CachesDep, CallerDep

router = APIRouter(tags=["operation"], responses=DOCUMENTED)


@router.get("/api/advanced-cache-stats")
async def read_cache_stats(caller: CallerDep, caches: CachesDep) -> CacheStats:
    """Each layer's hits, misses and their reasons, size, speed, and what it saved."""
    currency = caches.settings.currency
    reports: dict[LayerName, LayerReport] = {name: await caches.reports.of(name) for name in LAYERS}
    told = {
        name: _layer_info(report, enabled=caches.is_on(name), currency=currency).model_dump()
        for name, report in reports.items()
    }
    embedding = reports["embedding"]
    problem = caches.store.problem
    return CacheStats(
        store="redis" if caches.in_redis else "in-process",
        status="ok" if problem is None else "degraded",
        reason=problem,
        layers=LayersInfo(
            embedding=EmbeddingLayerInfo(
                **told["embedding"],
                routing=RoutingHits(hits=embedding.intent_hits, misses=embedding.intent_misses),
            ),
            chunks=LayerInfo(**told["chunks"]),
            answer=AnswerLayerInfo(
                **told["answer"],
                paraphrases=_paraphrases_info(
                    await caches.judge.tally(caller.tenant_id),
                    enabled=caches.settings.cache_paraphrases and caches.is_on("answer"),
                    shared=reports["answer"].paraphrases,
                ),
            ),
        ),
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


def _paraphrases_info(tally: Tally | None, *, enabled: bool, shared: int) -> ParaphrasesInfo:
    known = tally or Tally()
    bounds = known.bounds if known.judged else None
    status = "off" if not enabled else "stopped" if known.is_stopped else "on"
    return ParaphrasesInfo(
        status="unknown" if enabled and tally is None else status,
        shared=shared,
        judged=known.judged,
        wrong=known.wrong,
        wrong_at_least=None if bounds is None else round(bounds.low, 4),
        wrong_at_most=None if bounds is None else round(bounds.high, 4),
    )


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
