"""What came of the answers in an experiment, written behind them and added up by arm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.experiments.guards import Measured
from app.experiments.intervals import Rate, Sample

NO_SAMPLE = Sample(0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one answer. `failed`: an error of ours; `ttft_ms`: to the first text."""

    experiment_id: UUID
    arm: int
    percent: int
    failed: bool = False
    declined: bool = False
    ttft_ms: float | None = None
    cost: Decimal = Decimal(0)
    id: UUID = field(default_factory=uuid4)
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


async def store_outcomes(connection: AsyncConnection, outcomes: Sequence[Outcome]) -> None:
    """Write them; written twice they are the same as once."""
    await connection.execute(
        _INSERT,
        [
            {
                "id": one.id,
                "experiment_id": one.experiment_id,
                "arm": one.arm,
                "percent": one.percent,
                "failed": one.failed,
                "declined": one.declined,
                "ttft_ms": one.ttft_ms,
                "cost": one.cost,
                "created_at": one.at,
            }
            for one in outcomes
        ],
    )


async def measure(connection: AsyncConnection, experiment_id: UUID) -> Mapping[int, Measured]:
    """What is known of each arm, by its place; an arm without any answer is not among them."""
    asked = {"id": experiment_id}
    ratings = {
        row.arm: Rate(row.negative, row.ratings)
        for row in (await connection.execute(_FEEDBACK, asked)).all()
    }
    found = await connection.execute(_MEASURE, asked)
    return {
        row.arm: Measured(
            errors=Rate(row.failed, row.answers),
            declined=Rate(row.declined, row.answers - row.failed),
            negative_feedback=ratings.get(row.arm, Rate(0, 0)),
            ttft_ms=_sample(row.timed, row.ttft_mean, row.ttft_variance),
            cost=_sample(row.answers - row.failed, row.cost_mean, row.cost_variance),
        )
        for row in found.all()
    }


def _sample(total: int, mean: Any, variance: Any) -> Sample:
    return Sample(total, float(mean or 0), float(variance or 0)) if total else NO_SAMPLE


_INSERT = text("""
    INSERT INTO experiment_outcomes
      (id, experiment_id, arm, percent, failed, declined, ttft_ms, cost, created_at)
    VALUES (:id, :experiment_id, :arm, :percent, :failed, :declined, :ttft_ms, :cost, :created_at)
    ON CONFLICT (id) DO NOTHING
""")
_MEASURE = text("""
    SELECT arm, count(*) AS answers,
      count(*) FILTER (WHERE failed) AS failed,
      count(*) FILTER (WHERE declined) AS declined,
      count(ttft_ms) AS timed, avg(ttft_ms) AS ttft_mean, var_samp(ttft_ms) AS ttft_variance,
      avg(cost) FILTER (WHERE NOT failed) AS cost_mean,
      var_samp(cost) FILTER (WHERE NOT failed) AS cost_variance
    FROM experiment_outcomes WHERE experiment_id = :id GROUP BY arm
""")
# The reply that was stored with an answer says which arm gave it.
_FEEDBACK = text("""
    SELECT CAST(m.answer->'experiment'->>'place' AS integer) AS arm,
      count(*) AS ratings, count(*) FILTER (WHERE f.rating < 0) AS negative
    FROM experiments AS e
    JOIN feedback AS f ON f.tenant_id = e.tenant_id AND f.created_at >= e.created_at
    JOIN messages AS m ON m.id = f.message_id
    WHERE e.id = :id AND m.answer->'experiment'->>'id' = CAST(e.id AS text)
    GROUP BY 1
""")
