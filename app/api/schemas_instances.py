"""The wire of the model servers: whether they are well, and how they are changed.

What they do is told as app/llm/statistics.py has it.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from app.api.schemas import Milliseconds, Text, Wire
from app.llm.statistics import InstanceStatistics

URL_CHARS_MAX = 2000
SLOTS_MAX = 1024
CHANGES_MAX = 1000


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

    `draining` takes no more requests; `removed` is forgotten as soon as its last stream is over;
    `configured` takes back what was changed. `slots` left out: as before, 1 for a new one.
    """

    url: Annotated[Text, Field(max_length=URL_CHARS_MAX, examples=["http://gpu-9:11434"])]
    slots: Annotated[int, Field(ge=1, le=SLOTS_MAX)] | None = None
    state: Literal["serving", "draining", "removed", "configured"] = "serving"


class InstanceChanges(Wire):
    instances: Annotated[list[InstanceChange], Field(min_length=1, max_length=CHANGES_MAX)]


class StandingChange(BaseModel):
    """What holds for a server, whatever the configuration says; `slots` null: as configured."""

    url: str
    slots: int | None
    state: Literal["serving", "draining", "removed"]
    changed_at: datetime


class InstanceList(BaseModel):
    """`instances` of the process that was asked; `changes` hold for all processes."""

    instances: list[InstanceStatistics]
    changes: list[StandingChange]
