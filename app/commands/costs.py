"""`footnote costs …`: straight from the database, because it is about all tenants."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from app.commands.output import AsJson, console, print_json, print_table, quiet_settings
from app.config import Settings
from app.costs.prices import written_amount
from app.errors import InvalidInput
from app.telemetry import configure_logging

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from app.costs.budgets import BudgetState
    from app.costs.reports import CostReport, CostRow

Result = TypeVar("Result")

NONE = "none"
REFUSED_PERCENT = 100
COLUMNS = ["answers", "cached", "read", "written", "cost", "cache-saved", "local-saved"]

costs = typer.Typer(help="What generations cost and saved, and what they may cost.")

Tenant = Annotated[
    str | None, typer.Option(metavar="NAME", help="Of this tenant; without it, see each command.")
]


@costs.callback(invoke_without_command=True)
def report(
    context: typer.Context,
    first: Annotated[
        datetime | None,
        typer.Option(
            "--from", formats=["%Y-%m-%d"], help="The first day, UTC; by default the month's."
        ),
    ] = None,
    last: Annotated[
        datetime | None,
        typer.Option("--to", formats=["%Y-%m-%d"], help="The last day; by default today."),
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            help="What to add up by, with commas: day, tenant, model, collection, tier, provider, key."
        ),
    ] = "day",
    tenant: Tenant = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: AsJson = False,
) -> None:
    """Report tokens, cost and savings; of all tenants, or of one."""
    if context.invoked_subcommand is not None:
        return
    from app.costs import reports  # noqa: PLC0415 - heavy, and not for `footnote --help`

    end = last.date() if last else datetime.now(UTC).date()
    period = reports.Period(first.date() if first else end.replace(day=1), end)
    chosen = reports.dimensions(by)

    async def work(engine: "AsyncEngine", _settings: Settings) -> "CostReport":
        tenant_id = None if tenant is None else await _tenant_id(engine, tenant)
        return await reports.CostReports(engine).read(period, chosen, tenant_id=tenant_id)

    settings, found = _with_database(work)
    if as_csv:
        typer.echo(reports.written_as_csv(found, settings.currency), nl=False)
    elif as_json:
        print_json(_described(found, settings.currency))
    else:
        _print(found, settings.currency)


@costs.command("budget")
def budget(
    amount: Annotated[
        str | None,
        typer.Argument(help="What may be spent in a month; `none` takes the budget away."),
    ] = None,
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """Show or set a tenant's budget of a month; by default that of the default tenant."""
    limit = _amount(amount)

    async def work(engine: "AsyncEngine", settings: Settings) -> "BudgetState":
        from app.access import DEFAULT_TENANT_ID  # noqa: PLC0415 - heavy
        from app.costs.budgets import Budgets  # noqa: PLC0415 - heavy

        tenant_id = DEFAULT_TENANT_ID if tenant is None else await _tenant_id(engine, tenant)
        budgets = Budgets(engine, settings.monthly_budget)
        if amount is None:
            return await budgets.state(tenant_id)
        return await budgets.set(tenant_id, limit)

    settings, state = _with_database(work)
    if as_json:
        print_json(_described_budget(state, settings.currency))
        return
    most = "no budget" if state.monthly_limit is None else written_amount(state.monthly_limit)
    console().print(
        f"{state.tenant}, {state.month:%Y-%m}: {written_amount(state.spent)} of {most}"
        f" {settings.currency} spent, {written_amount(state.reserved)} reserved."
    )
    for alert in state.alerts:
        is_refusal = alert.percent == REFUSED_PERCENT
        what = "a model was refused" if is_refusal else f"{alert.percent} % was reached"
        console().print(f"{alert.at:%Y-%m-%d %H:%M} UTC: {what} at {written_amount(alert.spent)}.")


def _with_database(
    work: Callable[["AsyncEngine", Settings], Awaitable[Result]],
) -> tuple[Settings, Result]:
    from app.db.schema import ready_database  # noqa: PLC0415 - heavy
    from app.db.session import open_engine  # noqa: PLC0415 - heavy

    settings = quiet_settings()
    configure_logging(settings)

    async def run(url: str) -> Result:
        engine = open_engine(settings, url)
        try:
            return await work(engine, settings)
        finally:
            await engine.dispose()

    with ready_database(settings) as url:
        return settings, asyncio.run(run(url))


async def _tenant_id(engine: "AsyncEngine", name: str) -> int:
    from app.costs.budgets import find_tenant  # noqa: PLC0415 - heavy

    return await find_tenant(engine, name)


def _amount(given: str | None) -> Decimal | None:
    if given is None or given == NONE:
        return None
    try:
        return Decimal(given)
    except InvalidOperation:
        raise InvalidInput(
            f"{given!r} is no amount of money.",
            hint="Give a number such as 50 or 12.50, or `none`.",
        ) from None


def _print(found: "CostReport", currency: str) -> None:
    total = found.total
    print_table(
        [*found.by, *COLUMNS],
        (
            [
                *row.group,
                *(f"{row.generations + row.cache_hits:,}", f"{row.cache_hits:,}"),
                *(f"{row.prompt_tokens:,}", f"{row.completion_tokens:,}"),
                *map(written_amount, (row.cost, row.saved_by_cache, row.saved_by_local)),
            ]
            for row in found.rows
        ),
        empty="Nothing was generated in these days.",
        right=" ".join(COLUMNS),
    )
    if found.rows:
        console().print(
            f"{found.period.first} to {found.period.last}: {written_amount(total.cost)} {currency} for"
            f" {total.generations:,} generations; caches saved {written_amount(total.saved_by_cache)},"
            f" local models {written_amount(total.saved_by_local)}."
        )


def _described(found: "CostReport", currency: str) -> dict[str, Any]:
    return {
        "from": found.period.first,
        "to": found.period.last,
        "currency": currency,
        "by": found.by,
        "rows": [
            {"group": dict(zip(found.by, row.group, strict=True)), **_numbers(row)}
            for row in found.rows
        ],
        "total": _numbers(found.total),
    }


def _numbers(row: "CostRow") -> dict[str, Any]:
    return {
        name: written_amount(value) if isinstance(value, Decimal) else value
        for name, value in asdict(row).items()
        if name != "group"
    }


def _described_budget(state: "BudgetState", currency: str) -> dict[str, Any]:
    limit = state.monthly_limit
    return {
        "tenant": state.tenant,
        "month": f"{state.month:%Y-%m}",
        "monthly_limit": None if limit is None else written_amount(limit),
        "source": "own" if state.is_own else "settings",
        "spent": written_amount(state.spent),
        "reserved": written_amount(state.reserved),
        "currency": currency,
        "alerts": [
            {
                "percent": alert.percent,
                "at": alert.at,
                "spent": written_amount(alert.spent),
                "monthly_limit": written_amount(alert.monthly_limit),
            }
            for alert in state.alerts
        ],
    }
