"""Gradual rollouts: begun, taken further, led back, reported."""

from collections.abc import Sequence
from dataclasses import asdict
from math import isnan
from typing import Annotated, Any

from fastapi import APIRouter, Path

from app.api.bodies import BodyRoute
from app.api.problems import DOCUMENTED
from app.api.schemas import Text
from app.api.schemas_experiments import (
    ArmBody,
    ArmReport,
    ExperimentInfo,
    ExperimentList,
    ExperimentReport,
    FiguresInfo,
    IntervalInfo,
    NewExperiment,
    ToleranceBody,
)
from app.dependencies import CallerDep, RolloutsDep
from app.experiments.assignment import CONTROL, Arm
from app.experiments.guards import Measured, Tolerance
from app.experiments.intervals import (
    Interval,
    of_mean,
    of_mean_difference,
    of_rate,
    of_rate_difference,
)
from app.experiments.rollouts import Report, Rollout

router = APIRouter(route_class=BodyRoute, tags=["experiments"], responses=DOCUMENTED)

Name = Annotated[Text, Path()]


@router.get("/api/admin/experiments")
async def list_experiments(caller: CallerDep, rollouts: RolloutsDep) -> ExperimentList:
    return ExperimentList(experiments=[_info(one) for one in await rollouts.list(caller)])


@router.post("/api/admin/experiments", status_code=201)
async def begin_experiment(
    body: NewExperiment, caller: CallerDep, rollouts: RolloutsDep
) -> ExperimentInfo:
    """Give a candidate to a tenth of the callers, always the same ones."""
    arms = [_arm(one) for one in (body.control, *body.candidates)]
    tolerance = Tolerance(**body.tolerance.model_dump())
    return _info(await rollouts.begin(caller, body.name, arms, tolerance))


@router.get("/api/admin/experiments/{name}")
async def read_experiment(name: Name, caller: CallerDep, rollouts: RolloutsDep) -> ExperimentReport:
    """The arms side by side, with 95 % intervals."""
    return _report(await rollouts.report(caller, name))


@router.post("/api/admin/experiments/{name}/advance")
async def advance_experiment(
    name: Name, caller: CallerDep, rollouts: RolloutsDep
) -> ExperimentInfo:
    """Take it to the next step: 25, 50, 75, 100 percent of the callers."""
    return _info(await rollouts.advance(caller, name))


@router.post("/api/admin/experiments/{name}/rollback")
async def roll_back_experiment(
    name: Name, caller: CallerDep, rollouts: RolloutsDep
) -> ExperimentInfo:
    """Everybody is as without the experiment again, within two seconds."""
    return _info(await rollouts.roll_back(caller, name))


@router.post("/api/admin/experiments/{name}/finish")
async def finish_experiment(name: Name, caller: CallerDep, rollouts: RolloutsDep) -> ExperimentInfo:
    """It is over; make the candidate the setting before, if it is to stay."""
    return _info(await rollouts.finish(caller, name))


def _arm(body: ArmBody) -> Arm:
    return Arm(
        name=body.name,
        model=body.model,
        prompt_version=body.prompt_version,
        mode=body.mode,
        rerank=body.rerank,
        passages_count=body.passages,
    )


def _arm_body(arm: Arm) -> ArmBody:
    return ArmBody(
        name=arm.name,
        model=arm.model,
        prompt_version=arm.prompt_version,
        mode=arm.mode,
        rerank=arm.rerank,
        passages=arm.passages_count,
    )


def _info(rollout: Rollout) -> ExperimentInfo:
    return ExperimentInfo(**_facts(rollout))


def _facts(rollout: Rollout) -> dict[str, Any]:
    control, *candidates = map(_arm_body, rollout.arms)
    return {
        "id": rollout.id,
        "name": rollout.name,
        "status": rollout.status,
        "percent": rollout.percent,
        "reason": rollout.reason,
        "control": control,
        "candidates": candidates,
        "tolerance": ToleranceBody(**asdict(rollout.tolerance)),
        "created_at": rollout.created_at,
        "stepped_at": rollout.stepped_at,
        "ended_at": rollout.ended_at,
    }


def _report(report: Report) -> ExperimentReport:
    return ExperimentReport(
        **_facts(report.rollout),
        arms=[
            _arm_report(arm.name, place, report.measured)
            for place, arm in enumerate(report.rollout.arms)
        ],
    )


def _arm_report(name: str, place: int, measured: Sequence[Measured | None]) -> ArmReport:
    own, control = measured[place], measured[CONTROL]
    return ArmReport(
        arm=name,
        answers=own.errors.total if own else 0,
        ratings=own.negative_feedback.total if own else 0,
        figures=_figures(own),
        difference=None if place == CONTROL else _difference(own, control),
    )


def _figures(own: Measured | None) -> FiguresInfo:
    if own is None:
        return _NOTHING
    return FiguresInfo(
        errors=_shown(of_rate(own.errors)),
        declined=_shown(of_rate(own.declined)),
        negative_feedback=_shown(of_rate(own.negative_feedback)),
        ttft_ms=_shown(of_mean(own.ttft_ms)),
        cost=_shown(of_mean(own.cost)),
    )


def _difference(own: Measured | None, control: Measured | None) -> FiguresInfo:
    if own is None or control is None:
        return _NOTHING
    return FiguresInfo(
        errors=_shown(of_rate_difference(own.errors, control.errors)),
        declined=_shown(of_rate_difference(own.declined, control.declined)),
        negative_feedback=_shown(
            of_rate_difference(own.negative_feedback, control.negative_feedback)
        ),
        ttft_ms=_shown(of_mean_difference(own.ttft_ms, control.ttft_ms)),
        cost=_shown(of_mean_difference(own.cost, control.cost)),
    )


def _shown(interval: Interval) -> IntervalInfo | None:
    if isnan(interval.estimate):
        return None
    return IntervalInfo(estimate=interval.estimate, low=interval.low, high=interval.high)


_NOTHING = FiguresInfo(errors=None, declined=None, negative_feedback=None, ttft_ms=None, cost=None)
