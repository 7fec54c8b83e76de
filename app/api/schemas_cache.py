"""Wire models of the caches' numbers."""

from typing import Literal

from pydantic import BaseModel, Field

from app.api.schemas import Milliseconds, Money

Rate = float | None


class HitRates(BaseModel):
    """Share of look-ups that found something; null where there was none."""

    last_minute: Rate
    last_hour: Rate
    all: Rate


class LatencyInfo(BaseModel):
    mean_ms: Milliseconds | None
    p95_ms: Milliseconds | None


class MissReasons(BaseModel):
    """Of misses: never asked before, or asked, and then what has changed since.

    `gone`: nothing has, but the value expired or was evicted. A process tells by what it has seen.
    """

    new: int
    evidence_changed: int
    scope: int
    settings: int
    gone: int


class SavedInfo(BaseModel):
    seconds: float
    tokens: int
    cost: Money
    currency: str


class LayerInfo(BaseModel):
    """`joined`: answers that were read along while another question like it was answered."""

    enabled: bool
    hits: int
    misses: int
    hit_rate: HitRates
    entries: int
    bytes: int
    evictions: int
    latency: LatencyInfo = Field(description="Of a look-up, be it a hit or a miss.")
    joined: int
    missed: MissReasons
    saved: SavedInfo


class RoutingHits(BaseModel):
    """Kinds of questions, by which a model is chosen: known, or found out."""

    hits: int
    misses: int


class EmbeddingLayerInfo(LayerInfo):
    routing: RoutingHits


class ParaphrasesInfo(BaseModel):
    """Answers shared by wordings of the same question: `shared` of what counts as missed above.

    `stopped`: of those `judged`, so many were `wrong` that none are shared any more, until the
    tenant's answers are emptied. `wrong_at_least` and `wrong_at_most` bound the share of wrong ones.
    All but `shared` is of the caller's tenant.
    """

    status: Literal["off", "on", "stopped", "unknown"]
    shared: int
    judged: int
    wrong: int
    wrong_at_least: float | None
    wrong_at_most: float | None


class AnswerLayerInfo(LayerInfo):
    paraphrases: ParaphrasesInfo


class LayersInfo(BaseModel):
    embedding: EmbeddingLayerInfo
    chunks: LayerInfo
    answer: AnswerLayerInfo


class CacheStats(BaseModel):
    """`store` is `redis`, added up over all processes, or `in-process`: of this one alone."""

    store: Literal["redis", "in-process"]
    status: Literal["ok", "degraded"]
    reason: str | None
    layers: LayersInfo


class CacheRemoval(BaseModel):
    """How many values each layer forgot."""

    embedding: int = 0
    chunks: int = 0
    answer: int = 0
