"""Gradual rollouts, and what came of the answers in them."""

from decimal import Decimal
from typing import Any, Literal
from uuid import UUID, uuid4

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Float,
    ForeignKey,
    Index,
    Numeric,
    SmallInteger,
    Text,
    UniqueConstraint,
)
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, CreatedAt, Moment

ExperimentStatus = Literal["running", "halted", "rolled_back", "finished"]


class Experiment(Base):
    """`arms` are settings by arm, the control first; `percent` of the callers get a candidate.

    A tenant runs one at a time. `reason` says why it was halted.
    """

    __tablename__ = "experiments"
    __table_args__ = (
        UniqueConstraint("tenant_id", "name"),
        CheckConstraint(
            "status IN ('running', 'halted', 'rolled_back', 'finished')", name="status"
        ),
        Index(
            "ix_experiments_running",
            "tenant_id",
            unique=True,
            postgresql_where=sql("status = 'running'"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str] = mapped_column(Text)
    arms: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    tolerance: Mapped[dict[str, Any]] = mapped_column(JSONB)
    percent: Mapped[int] = mapped_column(SmallInteger)
    status: Mapped[str] = mapped_column(Text, server_default="running")
    reason: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[CreatedAt]
    stepped_at: Mapped[CreatedAt]
    ended_at: Mapped[Moment | None]


class ExperimentOutcome(Base):
    """One answer in an experiment. `ttft_ms` is None where no text came, or nobody waited for it."""

    __tablename__ = "experiment_outcomes"
    __table_args__ = (Index("ix_experiment_outcomes_arm", "experiment_id", "arm"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    experiment_id: Mapped[UUID] = mapped_column(ForeignKey("experiments.id", ondelete="CASCADE"))
    arm: Mapped[int] = mapped_column(SmallInteger)
    percent: Mapped[int] = mapped_column(SmallInteger)
    failed: Mapped[bool] = mapped_column(Boolean)
    declined: Mapped[bool] = mapped_column(Boolean)
    ttft_ms: Mapped[float | None] = mapped_column(Float)
    cost: Mapped[Decimal] = mapped_column(Numeric(24, 12))
    created_at: Mapped[CreatedAt]
