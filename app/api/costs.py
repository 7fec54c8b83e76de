"""What generations cost, and what they may cost in a month."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from app.api.bodies import BodyRoute
from app.api.problems import DOCUMENTED
from app.api.schemas_costs import (
    AlertInfo,
    BudgetInfo,
    CostInfo,
    CostQuery,
    CostReply,
    CostRowInfo,
    NewBudget,
)
from app.costs.budgets import BudgetState
from app.costs.reports import CostRow, Period, dimensions, written_as_csv
from app.dependencies import BudgetsDep, CallerDep, CostReportsDep, SettingsDep
from app.errors import Forbidden, InvalidInput

CSV = "text/csv"

router = APIRouter(route_class=BodyRoute, tags=["costs"], responses=DOCUMENTED)


@router.get(
    "/api/costs",
    response_model=CostReply,
    responses={200: {"description": "The report", "content": {CSV: {}}}},
)
async def read_costs(
    query: Annotated[CostQuery, Query()],
    request: Request,
    caller: CallerDep,
    reports: CostReportsDep,
    budgets: BudgetsDep,
    settings: SettingsDep,
) -> CostReply | Response:
    """Tokens, cost and savings of the caller's tenant, added up by what `by` names.

    As CSV with `format=csv` or `Accept: text/csv`. A key that is limited to collections gets what
    was asked of these alone.
    """
    as_csv = _wants_csv(query.format, request.headers.get("accept", ""))
    today = datetime.now(UTC).date()
    last = query.last or today
    report = await reports.read(
        Period(query.first or last.replace(day=1), last),
        dimensions(query.by),
        tenant_id=caller.tenant_id,
        collections=caller.collections,
    )
    if as_csv:
        name = f"costs-{report.period.first}-{report.period.last}.csv"
        return Response(
            written_as_csv(report, settings.currency),
            media_type=CSV,
            headers={"Content-Disposition": f'attachment; filename="{name}"', "Vary": "Accept"},
        )
    return CostReply(
        first=report.period.first,
        last=report.period.last,
        currency=settings.currency,
        by=[*report.by],
        rows=[
            CostRowInfo(group=dict(zip(report.by, row.group, strict=True)), **_numbers(row))
            for row in report.rows
        ],
        total=CostInfo(**_numbers(report.total)),
        budget=_budget_info(await budgets.state(caller.tenant_id), settings.currency),
    )


@router.put("/api/costs/budget")
async def set_budget(
    body: NewBudget, caller: CallerDep, budgets: BudgetsDep, settings: SettingsDep
) -> BudgetInfo:
    """Set what the caller's tenant may spend in a month, from now on."""
    if caller.collections is not None:
        raise Forbidden("A key that is limited to collections may not set the tenant's budget.")
    return _budget_info(await budgets.set(caller.tenant_id, body.monthly_limit), settings.currency)


def _wants_csv(wanted: str | None, accepted: str) -> bool:
    if wanted is None:
        return accepted.partition(",")[0].partition(";")[0].strip().lower() == CSV
    if wanted not in ("json", "csv"):
        raise InvalidInput("`format` is json or csv.")
    return wanted == "csv"


def _numbers(row: CostRow) -> dict[str, Any]:
    return {
        "generations": row.generations,
        "cache_hits": row.cache_hits,
        "interrupted": row.interrupted,
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "cached_tokens": row.cached_tokens,
        "seconds": row.took_ms / 1000,
        "cost": row.cost,
        "reserved": row.reserved,
        "saved_by_cache": row.saved_by_cache,
        "saved_by_local": row.saved_by_local,
    }


def _budget_info(state: BudgetState, currency: str) -> BudgetInfo:
    return BudgetInfo(
        tenant=state.tenant,
        month=f"{state.month:%Y-%m}",
        monthly_limit=state.monthly_limit,
        source="own" if state.is_own else "settings",
        spent=state.spent,
        reserved=state.reserved,
        currency=currency,
        alerts=[
            AlertInfo(
                percent=one.percent, at=one.at, spent=one.spent, monthly_limit=one.monthly_limit
            )
            for one in state.alerts
        ],
    )
