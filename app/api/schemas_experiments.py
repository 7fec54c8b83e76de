"""The wire of experiments."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from app.api.schemas import Text, Wire
from app.db.models.experiments import ExperimentStatus
from app.experiments.guards import Tolerance

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Factor = Annotated[float, Field(ge=1, le=1000, allow_inf_nan=False)]

DEFAULT = Tolerance()


class ArmBody(Wire):
    """What is different for an arm's callers; what is left out stays as it is without it."""

    name: Name
    model: Annotated[Text, Field(min_length=1, max_length=200)] | None = None
    prompt_version: Annotated[Text, Field(min_length=1, max_length=20)] | None = None
    mode: Literal["hybrid", "vector"] | None = None
    rerank: bool | None = None
    passages: Annotated[int, Field(strict=True, ge=1, le=50)] | None = None


class ToleranceBody(Wire):
    """How much worse a candidate may be; null does not guard that.

    `errors`, `declined` and `negative_feedback` are shares added to the control's; `ttft` and
    `cost` are factors of its mean.
    """

    errors: Share | None = DEFAULT.errors
    declined: Share | None = DEFAULT.declined
    negative_feedback: Share | None = DEFAULT.negative_feedback
    ttft: Factor | None = DEFAULT.ttft
    cost: Factor | None = DEFAULT.cost


class NewExperiment(Wire):
    """`control` is what everybody has without it, unless it says otherwise."""

    name: Annotated[Name, Field(examples=["short-prompt"])]
    control: ArmBody = ArmBody(name="control")
    candidates: Annotated[list[ArmBody], Field(min_length=1, max_length=4)]
    tolerance: ToleranceBody = ToleranceBody()


class ExperimentInfo(BaseModel):
    """`percent` of the callers get a candidate; `reason` says why it was halted."""

    id: UUID
    name: str
    status: ExperimentStatus
    percent: int
    reason: str | None
    control: ArmBody
    candidates: list[ArmBody]
    tolerance: ToleranceBody
    created_at: datetime
    stepped_at: datetime
    ended_at: datetime | None


class ExperimentList(BaseModel):
    experiments: list[ExperimentInfo]


class IntervalInfo(BaseModel):
    """An estimate with its 95 % interval."""

    estimate: float
    low: float
    high: float


class FiguresInfo(BaseModel):
    """A figure is null where there is too little to say it.

    `ttft_ms` is the time to the first text, `cost` that of an answer; means both.
    """

    errors: IntervalInfo | None
    declined: IntervalInfo | None
    negative_feedback: IntervalInfo | None
    ttft_ms: IntervalInfo | None
    cost: IntervalInfo | None


class ArmReport(BaseModel):
    """`difference` is the arm less the control, null for the control itself."""

    arm: str
    answers: int
    ratings: int
    figures: FiguresInfo
    difference: FiguresInfo | None


class ExperimentReport(ExperimentInfo):
    arms: list[ArmReport]
