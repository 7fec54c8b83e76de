"""Experiments of tenants: begun, taken further, halted, led back, reported.

Each process reads anew every second which experiments run, so that a step, a halt and a rollback
hold everywhere within two; while the database is away, the last known ones go on. The guards are
judged by each process and halt at most once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from time import perf_counter
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.access import Caller
from app.db.models import Experiment
from app.db.models.experiments import ExperimentStatus
from app.db.session import Sessions
from app.db.transactions import in_transaction, translated_errors
from app.db.write_behind import WriteBehind
from app.errors import Conflict, FootnoteError, InvalidInput, NotFound
from app.experiments.assignment import CONTROL, STEPS, Arm, arm_place, unit_of
from app.experiments.guards import Measured, Tolerance, breach
from app.experiments.outcomes import Outcome, measure, store_outcomes
from app.telemetry import EXPERIMENTS_HALTED

READ_SECONDS = 1.0
JUDGE_SECONDS = 3.0
JUDGING_SHARE = 20
"""So many times as long as judging took is waited before it is done again."""
MAX_ARMS = 5

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Available:
    """What arms may ask for. `models` by name, each with why it cannot be asked now, or None.

    `reranker`: the service has one.
    """

    models: Mapping[str, str | None]
    prompt_versions: frozenset[str]
    reranker: bool


WhatIsThere = Callable[[Caller], Awaitable[Available]]


@dataclass(frozen=True, slots=True)
class Rollout:
    """An experiment as it stands; `arms` begin with the control."""

    id: UUID
    tenant_id: int
    name: str
    arms: tuple[Arm, ...]
    tolerance: Tolerance
    percent: int
    status: ExperimentStatus
    reason: str | None
    created_at: datetime
    stepped_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class Assigned:
    """The arm that a caller gets in a rollout; `place` is its place among the arms."""

    rollout: Rollout
    place: int

    @property
    def arm(self) -> Arm:
        return self.rollout.arms[self.place]


@dataclass(frozen=True, slots=True)
class Report:
    """`measured` by the place of the arm; None where an arm has no answer yet."""

    rollout: Rollout
    measured: Sequence[Measured | None]


class Rollouts:
    def __init__(self, engine: AsyncEngine, sessions: Sessions, available: WhatIsThere) -> None:
        self._engine = engine
        self._sessions = sessions
        self._available = available
        self._running: Mapping[int, Rollout] = {}
        self._outcomes = WriteBehind(engine, store_outcomes, table="experiment_outcomes")

    # --- for every answer ------------------------------------------------------------------------

    def assign(self, caller: Caller) -> Assigned | None:
        """The caller's arm in what his tenant runs, from memory; None where nothing runs."""
        rollout = self._running.get(caller.tenant_id)
        if rollout is None:
            return None
        unit = unit_of(caller.tenant_id, caller.key_id)
        candidates_count = len(rollout.arms) - 1
        return Assigned(
            rollout, arm_place(str(rollout.id), unit, candidates_count, rollout.percent)
        )

    def note(self, outcome: Outcome) -> None:
        """Write down what came of an answer, later; never waits and never raises."""
        self._outcomes.put(outcome)

    # --- for whoever runs them -------------------------------------------------------------------

    async def begin(
        self, caller: Caller, name: str, arms: Sequence[Arm], tolerance: Tolerance
    ) -> Rollout:
        """Begin at the first step. Raises InvalidInput for what is not there, and Conflict."""
        self._check(arms, await self._available(caller))
        row = Experiment(
            tenant_id=caller.tenant_id,
            name=name,
            arms=[asdict(arm) for arm in arms],
            tolerance=asdict(tolerance),
            percent=STEPS[0],
        )
        with translated_errors():
            async with self._sessions() as session:
                session.add(row)
                try:
                    await session.flush()
                except IntegrityError as error:
                    if "ix_experiments_running" in str(error.orig):
                        raise Conflict(
                            "An experiment runs already.",
                            hint="Finish it or roll it back; one runs at a time.",
                        ) from None
                    raise Conflict(
                        f"There was an experiment {name!r} before.", hint="Choose another name."
                    ) from None
                await session.refresh(row)
                await session.commit()
        rollout = _rollout(row)
        log.info("experiment_begun", experiment=name, percent=rollout.percent)
        await self._read_running()
        return rollout

    async def advance(self, caller: Caller, name: str) -> Rollout:
        """The next step. Raises Conflict at the last one, and where a guard is broken now."""
        with translated_errors():
            async with self._sessions() as session:
                before = _rollout(await _find(session, caller, name))
        why = await self._broken(before)
        if why is not None:
            raise Conflict(f"A guard is broken: {why}.", hint="Roll the experiment back.")
        with translated_errors():
            async with self._sessions.begin() as session:
                row = await _find(session, caller, name, lock=True)
                if row.status != "running":
                    raise Conflict(f"The experiment {name!r} does not run: it is {row.status}.")
                further = [step for step in STEPS if step > row.percent]
                if not further:
                    raise Conflict(
                        "Everybody gets a candidate already.",
                        hint="Make it the setting, then finish the experiment.",
                    )
                rollout = await _changed(session, row, percent=further[0], stepped_at=func.now())
        log.info("experiment_stepped", experiment=name, percent=rollout.percent)
        await self._read_running()
        return rollout

    async def roll_back(self, caller: Caller, name: str) -> Rollout:
        """Everybody is as without the experiment again. One that was halted or ended stays so."""
        return await self._end(caller, name, "rolled_back")

    async def finish(self, caller: Caller, name: str) -> Rollout:
        """The experiment is over, and everybody as without it."""
        return await self._end(caller, name, "finished")

    async def list(self, caller: Caller) -> Sequence[Rollout]:
        """The tenant's experiments, newest first."""
        query = (
            select(Experiment)
            .where(Experiment.tenant_id == caller.tenant_id)
            .order_by(Experiment.created_at.desc())
        )
        with translated_errors():
            async with self._sessions() as session:
                return [_rollout(row) for row in await session.scalars(query)]

    async def report(self, caller: Caller, name: str) -> Report:
        """Raises NotFound."""
        with translated_errors():
            async with self._sessions() as session:
                rollout = _rollout(await _find(session, caller, name))
        measured = await self._measure(rollout)
        return Report(rollout, [measured.get(place) for place in range(len(rollout.arms))])

    async def _end(self, caller: Caller, name: str, status: ExperimentStatus) -> Rollout:
        with translated_errors():
            async with self._sessions.begin() as session:
                row = await _find(session, caller, name, lock=True)
                rollout = _rollout(row)
                if row.status == "running":
                    rollout = await _changed(session, row, status=status, ended_at=func.now())
        log.info("experiment_ended", experiment=name, status=rollout.status)
        await self._read_running()
        return rollout

    def _check(self, arms: Sequence[Arm], available: Available) -> None:
        names = [arm.name for arm in arms]
        if not 1 < len(arms) <= MAX_ARMS:
            raise InvalidInput(f"An experiment has a control and 1 to {MAX_ARMS - 1} candidates.")
        if len(set(names)) < len(names):
            raise InvalidInput("Two arms have the same name.")
        for arm in arms:
            if arm.model is not None:
                _check_model(arm.name, arm.model, available.models)
            if (
                arm.prompt_version is not None
                and arm.prompt_version not in available.prompt_versions
            ):
                raise InvalidInput(
                    f"There is no prompt version {arm.prompt_version!r}.",
                    hint=f"There are: {', '.join(sorted(available.prompt_versions))}.",
                )
            if arm.rerank and not available.reranker:
                raise InvalidInput(
                    f"The arm {arm.name} asks for a reranker, and none is configured.",
                    hint="Set FOOTNOTE_RERANKER.",
                )

    # --- in the background -----------------------------------------------------------------------

    async def follow(self) -> None:
        """Read what runs and judge it, until the service stops."""
        judge_at = 0.0
        while True:
            try:
                await self._read_running()
                if perf_counter() >= judge_at:
                    began = perf_counter()
                    await self.judge()
                    took_seconds = perf_counter() - began
                    judge_at = perf_counter() + max(JUDGE_SECONDS, JUDGING_SHARE * took_seconds)
            except FootnoteError as error:
                log.info("experiments_not_read", reason=error.detail)
            except Exception:
                log.exception("experiments_not_read")
            await asyncio.sleep(READ_SECONDS)

    async def judge(self) -> None:
        """Halt what broke a guard: from then on everybody is as without the experiment."""
        for rollout in list(self._running.values()):
            why = await self._broken(rollout)
            if why is not None:
                await self._halt(rollout, why)

    async def close(self) -> None:
        await self._outcomes.close()

    async def flush(self) -> None:
        """Until every outcome noted so far is written."""
        await self._outcomes.flush()

    async def _broken(self, rollout: Rollout) -> str | None:
        measured = await self._measure(rollout)
        control = measured.get(CONTROL)
        if control is None:
            return None
        for place, arm in enumerate(rollout.arms):
            if place == CONTROL or place not in measured:
                continue
            why = breach(measured[place], control, rollout.tolerance)
            if why is not None:
                return f"{arm.name}: {why}"
        return None

    async def _halt(self, rollout: Rollout, why: str) -> None:
        statement = (
            update(Experiment)
            .where(Experiment.id == rollout.id, Experiment.status == "running")
            .values(status="halted", reason=why, ended_at=func.now())
            .returning(Experiment.id)
        )
        with translated_errors():
            async with self._sessions.begin() as session:
                is_first = await session.scalar(statement) is not None
        if is_first:
            EXPERIMENTS_HALTED.inc()
            log.warning("experiment_halted", experiment=rollout.name, reason=why)
        await self._read_running()

    async def _measure(self, rollout: Rollout) -> Mapping[int, Measured]:
        return await in_transaction(
            self._engine.begin, lambda connection: measure(connection, rollout.id)
        )

    async def _read_running(self) -> None:
        with translated_errors():
            async with self._sessions() as session:
                rows = await session.scalars(
                    select(Experiment).where(Experiment.status == "running")
                )
                self._running = {row.tenant_id: _rollout(row) for row in rows}


def _check_model(arm: str, model: str, models: Mapping[str, str | None]) -> None:
    usable = sorted(name for name, why_not in models.items() if why_not is None)
    hint = f"There are: {', '.join(usable) or 'none'}."
    if model not in models:
        raise InvalidInput(
            f"The arm {arm} asks for the model {model!r}, which is not there.", hint=hint
        )
    if model not in usable:
        raise InvalidInput(
            f"The arm {arm} asks for the model {model!r}, which cannot be asked: {models[model]}.",
            hint=hint,
        )


async def _find(
    session: AsyncSession, caller: Caller, name: str, *, lock: bool = False
) -> Experiment:
    query = select(Experiment).where(
        Experiment.tenant_id == caller.tenant_id, Experiment.name == name
    )
    found = await session.scalar(query.with_for_update() if lock else query)
    if found is None:
        raise NotFound(
            "There is no such experiment.",
            hint="GET /api/admin/experiments lists those that there are.",
        )
    return found


async def _changed(session: AsyncSession, row: Experiment, **values: Any) -> Rollout:
    await session.execute(update(Experiment).where(Experiment.id == row.id).values(**values))
    await session.refresh(row)
    return _rollout(row)


def _rollout(row: Experiment) -> Rollout:
    status: Any = row.status
    return Rollout(
        id=row.id,
        tenant_id=row.tenant_id,
        name=row.name,
        arms=tuple(Arm(**arm) for arm in row.arms),
        tolerance=Tolerance(**row.tolerance),
        percent=row.percent,
        status=status,
        reason=row.reason,
        created_at=row.created_at,
        stepped_at=row.stepped_at,
        ended_at=row.ended_at,
    )
