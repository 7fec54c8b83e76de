"""What generations cost, and what tenants may spend. Money is numeric, in the currency of the settings.

Months begin at midnight UTC on their first day.
"""

from datetime import date
from decimal import Decimal
from typing import Annotated, Literal
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    CheckConstraint,
    Date,
    ForeignKey,
    Index,
    Integer,
    Numeric,
    SmallInteger,
    Text,
)
from sqlalchemy import text as sql
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, CreatedAt

Money = Annotated[Decimal, mapped_column(Numeric(24, 12))]

UsageMode = Literal["generated", "interrupted", "cached", "reserved"]


class UsageRecord(Base):
    """One generation, or one answer that a cache gave in the place of one.

    `mode`: `generated` to the end; `interrupted`, its tokens estimated; `cached`, no tokens;
    `reserved` while it runs at a price, and for ever if its process was killed: `cost` is then the
    most that it could cost. `saved` is what a cache or a local model saved. `took_ms` is how long
    the model worked. `cached_tokens` are part of `prompt_tokens`.
    """

    __tablename__ = "usage"
    __table_args__ = (
        Index("ix_usage_tenant", "tenant_id", "created_at"),
        CheckConstraint("mode IN ('generated', 'interrupted', 'cached', 'reserved')", name="mode"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id"))
    key_id: Mapped[UUID | None] = mapped_column(ForeignKey("api_keys.id"))
    model: Mapped[str] = mapped_column(Text)
    tier: Mapped[str] = mapped_column(Text)
    provider: Mapped[str] = mapped_column(Text)
    collections: Mapped[list[str]] = mapped_column(ARRAY(Text))
    mode: Mapped[str] = mapped_column(Text)
    prompt_tokens: Mapped[int] = mapped_column(Integer)
    completion_tokens: Mapped[int] = mapped_column(Integer)
    cached_tokens: Mapped[int] = mapped_column(Integer)
    took_ms: Mapped[int] = mapped_column(Integer)
    cost: Mapped[Money]
    saved: Mapped[Money]
    created_at: Mapped[CreatedAt]


class Spending(Base):
    """What a tenant's priced generations of a month cost.

    `spent` is the sum of the ledger's settled rows, `reserved` that of the `reserved` ones.
    """

    __tablename__ = "spending"

    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    month: Mapped[date] = mapped_column(Date, primary_key=True)
    spent: Mapped[Money] = mapped_column(server_default=sql("0"))
    reserved: Mapped[Money] = mapped_column(server_default=sql("0"))


class Budget(Base):
    """What a tenant may spend in a month; without a row, what the settings say."""

    __tablename__ = "budgets"
    __table_args__ = (CheckConstraint("monthly_limit >= 0", name="monthly_limit"),)

    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    monthly_limit: Mapped[Money]
    changed_at: Mapped[CreatedAt]


class BudgetAlert(Base):
    """When a month's spending reached a share of the budget; 100 when a model was first refused."""

    __tablename__ = "budget_alerts"

    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    month: Mapped[date] = mapped_column(Date, primary_key=True)
    percent: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    spent: Mapped[Money]
    monthly_limit: Mapped[Money]
    created_at: Mapped[CreatedAt]
