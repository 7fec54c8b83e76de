"""The wire of costs and budgets."""

from datetime import date, datetime
from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, Field

from app.api.schemas import Money, Text, Wire

BUDGET_MOST = Decimal(10) ** 11


class CostQuery(Wire):
    """Days are UTC, both included; left out, the current month up to today."""

    first: Annotated[date | None, Field(alias="from", examples=["2026-11-01"])] = None
    last: Annotated[date | None, Field(alias="to", examples=["2026-11-30"])] = None
    by: Annotated[
        Text,
        Field(
            max_length=200,
            description="Of day, tenant, model, collection, tier, provider and key.",
            examples=["day,model"],
        ),
    ] = "day"
    format: Annotated[
        Text | None, Field(max_length=10, description="`json` or `csv`; left out, as Accept says.")
    ] = None


class CostInfo(BaseModel):
    """`cost` includes what is `reserved`. `cached_tokens` are part of `prompt_tokens`.

    `cache_hits` are answers that a cache gave; `saved_by_cache` is what they had cost at first,
    `saved_by_local` what local models would have cost at the reference price, less their own.
    """

    generations: int
    cache_hits: int
    interrupted: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    seconds: float
    cost: Money
    reserved: Money
    saved_by_cache: Money
    saved_by_local: Money


class CostRowInfo(CostInfo):
    """`group` names each dimension that was asked for. Several collections are joined by ` + `."""

    group: dict[str, str]


class AlertInfo(BaseModel):
    """A share of the budget that was reached; 100: a model was refused."""

    percent: int
    at: datetime
    spent: Money
    monthly_limit: Money


class BudgetInfo(BaseModel):
    """This month's; `monthly_limit` is null where there is none.

    `source`: `own`, set for this tenant, or `settings`, which holds for all others. `reserved` is
    held back for generations that run.
    """

    tenant: str
    month: Annotated[str, Field(examples=["2026-11"])]
    monthly_limit: Money | None
    source: str
    spent: Money
    reserved: Money
    currency: str
    alerts: list[AlertInfo]


class CostReply(BaseModel):
    first: Annotated[date, Field(serialization_alias="from")]
    last: Annotated[date, Field(serialization_alias="to")]
    currency: str
    by: list[str]
    rows: list[CostRowInfo]
    total: CostInfo
    budget: BudgetInfo


class NewBudget(Wire):
    """Null takes the tenant's own budget away; what the settings say holds then."""

    monthly_limit: Annotated[Decimal, Field(ge=0, lt=BUDGET_MOST, decimal_places=6)] | None = Field(
        examples=["50.00"]
    )
