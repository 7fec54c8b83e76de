"""The wire of the model servers: what they do, whether they are well, and how they are changed."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from app.api.schemas import Milliseconds, Text, Wire

URL_CHARS_MAX = 2000
SLOTS_MAX = 1024
CHANGES_MAX = 1000


class PercentilesInfo(BaseModel):
    """Of the latest 512."""

    p50: float
    p95: float
    p99: float


class InstanceModelInfo(BaseModel):
    """What was learnt of one model on one server; null while nothing is.

    `slowdown_per_request` is by which share a token takes longer for each further answer that is
    written at the same time.
    """

    model: str
    resident: bool | None
    prompt_tokens_per_second: float | None
    completion_tokens_per_second: float | None
    slowdown_per_request: float
    load_ms: Milliseconds | None


class InstanceInfo(BaseModel):
    """One server.

    `slots` are those in use, fewer than `configured_slots` where waits inside the server show
    that it has fewer. `hidden_wait_ms` is the latest average of those waits. `prefix_hit_rate` is
    the share of prompt tokens that the server had cached, by its speed.
    """

    instance: str
    state: Literal["ready", "loading", "recovering", "ejected", "draining"]
    slots: int
    configured_slots: int
    in_flight: int
    in_flight_elsewhere: int
    served: int
    failed: int
    abandoned: int
    loads: int
    ejections: dict[str, int]
    hidden_wait_ms: Milliseconds
    prompt_tokens: int
    completion_tokens: int
    prefix_hit_rate: float
    models: list[InstanceModelInfo]


class QueueInfo(BaseModel):
    waiting_interactive: int
    waiting_batch: int
    expected_wait_ms: Milliseconds


class LoadBalancerStats(BaseModel):
    """From memory; counts are since this process started.

    `prediction_ratio` is the actual over the predicted time of answers. `failovers` are attempts
    that moved on before the first token (`first_token`), and answers that ended in `stream`.
    `slots_shared`: the `processes` share the slots through Redis.
    """

    model: str
    requests: int
    completed: int
    queue: QueueInfo
    queue_wait_ms: PercentilesInfo | None
    first_token_ms: PercentilesInfo | None
    token_gap_ms: PercentilesInfo | None
    choice_ms: PercentilesInfo | None
    prediction_ratio: PercentilesInfo | None
    failovers: dict[str, int]
    shed: dict[str, int]
    hedges: dict[str, int]
    processes: int
    slots_shared: bool
    instances: list[InstanceInfo]


class InstanceHealthInfo(BaseModel):
    """Asked just now. `ejected` servers get no requests until they are seen to generate."""

    instance: str
    status: Literal["ok", "degraded", "down"]
    reason: str | None
    latency_ms: Milliseconds | None
    version: str | None
    has_model: bool
    models: tuple[str, ...]
    resident_models: tuple[str, ...]
    slots: int
    in_flight: int
    ejected: bool


class OllamaHealth(BaseModel):
    """`healthy` of `total` servers answer, have the model and are in use."""

    status: Literal["ok", "degraded", "down"]
    model: str
    healthy: int
    total: int
    took_ms: Milliseconds
    instances: list[InstanceHealthInfo]


class InstanceChange(Wire):
    """A server that is not there is added.

    `draining` takes no more requests; `removed` is forgotten as soon as its last stream is over.
    `slots` left out: as before, 1 for a new one.
    """

    url: Annotated[Text, Field(max_length=URL_CHARS_MAX, examples=["http://gpu-9:11434"])]
    slots: Annotated[int, Field(ge=1, le=SLOTS_MAX)] | None = None
    state: Literal["serving", "draining", "removed"] = "serving"


class InstanceChanges(Wire):
    instances: Annotated[list[InstanceChange], Field(min_length=1, max_length=CHANGES_MAX)]


class InstanceList(BaseModel):
    instances: list[InstanceInfo]
