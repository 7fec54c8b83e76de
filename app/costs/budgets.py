"""What tenants may spend in a month, and when they came near it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db.transactions import in_transaction
from app.errors import InvalidInput, NotFound
from app.telemetry import BUDGET_ALERTS

ALERT_PERCENTS = (25, 50, 83)
REFUSED = 100
"""In the place of a percentage: a model was refused for the first time in the month."""
LARGEST_LIMIT = Decimal(10) ** 11

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Alert:
    """`percent` of the limit was reached at `at`; 100 says that a model was refused."""

    percent: int
    at: datetime
    spent: Decimal
    monthly_limit: Decimal


@dataclass(frozen=True, slots=True)
class BudgetState:
    """A tenant's budget of the current month (UTC); `monthly_limit` is None where there is none.

    `reserved` is held back for generations that run. `is_own`: set for this tenant, not by the
    settings for everybody.
    """

    tenant: str
    month: date
    monthly_limit: Decimal | None
    is_own: bool
    spent: Decimal
    reserved: Decimal
    alerts: Sequence[Alert]


class Budgets:
    """`default_limit` holds for tenants that have no budget of their own; None limits nobody."""

    def __init__(self, engine: AsyncEngine, default_limit: Decimal | None) -> None:
        self._engine = engine
        self._default_limit = default_limit

    async def state(self, tenant_id: int) -> BudgetState:
        return await in_transaction(
            self._engine.begin,
            lambda connection: _read_state(connection, tenant_id, self._default_limit),
        )

    async def set(self, tenant_id: int, monthly_limit: Decimal | None) -> BudgetState:
        """Set the tenant's own budget, from now on; None takes it away. Raises InvalidInput."""
        if monthly_limit is not None and not (
            monthly_limit.is_finite() and 0 <= monthly_limit < LARGEST_LIMIT
        ):
            raise InvalidInput("A budget is an amount of money of 0 or more.")

        async def work(connection: AsyncConnection) -> BudgetState:
            values = {"tenant_id": tenant_id, "monthly_limit": monthly_limit}
            await connection.execute(_UNSET if monthly_limit is None else _SET, values)
            state = await _read_state(connection, tenant_id, self._default_limit)
            await connection.execute(
                _FORGET_ALERTS,
                {"tenant_id": tenant_id, "month": state.month, "most": state.monthly_limit},
            )
            await note_alerts(connection, tenant_id, state.month, self._default_limit)
            return await _read_state(connection, tenant_id, self._default_limit)

        return await in_transaction(self._engine.begin, work)


async def find_tenant(engine: AsyncEngine, name: str) -> int:
    """The id of the tenant with this name; raises NotFound."""

    async def work(connection: AsyncConnection) -> int | None:
        found = await connection.execute(_TENANT, {"name": name})
        return found.scalar()

    tenant_id = await in_transaction(engine.begin, work)
    if tenant_id is None:
        raise NotFound(f"There is no tenant {name!r}.")
    return tenant_id


async def note_alerts(
    connection: AsyncConnection, tenant_id: int, month: date, default_limit: Decimal | None
) -> None:
    """Store, log and count what of the thresholds is newly reached."""
    found = await connection.execute(
        _ALERT,
        {
            "tenant_id": tenant_id,
            "month": month,
            "default_limit": default_limit,
            "percents": list(ALERT_PERCENTS),
        },
    )
    for percent, spent, limit in found.all():
        _tell(tenant_id, percent, spent, limit)


async def note_refusal(
    connection: AsyncConnection, tenant_id: int, default_limit: Decimal | None
) -> None:
    """Store, log and count that a model was refused, the first time in the month."""
    found = await connection.execute(
        _REFUSAL,
        {"tenant_id": tenant_id, "default_limit": default_limit, "percent": REFUSED},
    )
    for percent, spent, limit in found.all():
        _tell(tenant_id, percent, spent, limit)


def _tell(tenant_id: int, percent: int, spent: Decimal, limit: Decimal) -> None:
    BUDGET_ALERTS.labels(str(percent)).inc()
    log.warning(
        "budget_exhausted" if percent == REFUSED else "budget_alert",
        tenant=tenant_id,
        percent=percent,
        spent=str(spent),
        monthly_limit=str(limit),
    )


_MONTH = "date_trunc('month', now() AT TIME ZONE 'UTC')::date"
_TENANT = text("SELECT id FROM tenants WHERE name = :name")
_SET = text("""
    INSERT INTO budgets (tenant_id, monthly_limit) VALUES (:tenant_id, :monthly_limit)
    ON CONFLICT (tenant_id) DO UPDATE
    SET monthly_limit = excluded.monthly_limit, changed_at = now()
""")
_UNSET = text("DELETE FROM budgets WHERE tenant_id = :tenant_id")
# Against a larger budget they are not true any more, and may come again.
_FORGET_ALERTS = text("""
    DELETE FROM budget_alerts AS a USING spending AS s
    WHERE a.tenant_id = :tenant_id AND a.month = :month AND s.tenant_id = a.tenant_id
      AND s.month = a.month
      AND (CAST(:most AS numeric) IS NULL OR s.spent < CAST(:most AS numeric) * a.percent / 100)
""")
_ALERT = text("""
    INSERT INTO budget_alerts (tenant_id, month, percent, spent, monthly_limit)
    SELECT s.tenant_id, s.month, percent, s.spent, most
    FROM (
      SELECT spending.*, coalesce(budgets.monthly_limit, CAST(:default_limit AS numeric)) AS most
      FROM spending LEFT JOIN budgets USING (tenant_id)
      WHERE tenant_id = :tenant_id AND month = :month
    ) AS s CROSS JOIN unnest(CAST(:percents AS smallint[])) AS percent
    WHERE most > 0 AND s.spent >= most * percent / 100
    ORDER BY percent
    ON CONFLICT DO NOTHING
    RETURNING percent, spent, monthly_limit
""")
_REFUSAL = text(f"""
    INSERT INTO budget_alerts (tenant_id, month, percent, spent, monthly_limit)
    SELECT s.tenant_id, s.month, CAST(:percent AS smallint), s.spent,
      coalesce(b.monthly_limit, CAST(:default_limit AS numeric))
    FROM spending AS s LEFT JOIN budgets AS b USING (tenant_id)
    WHERE s.tenant_id = :tenant_id AND s.month = {_MONTH}
      AND coalesce(b.monthly_limit, CAST(:default_limit AS numeric)) IS NOT NULL
    ON CONFLICT DO NOTHING
    RETURNING percent, spent, monthly_limit
""")  # noqa: S608 - a constant
_STATE = text(f"""
    SELECT t.name, {_MONTH}, b.monthly_limit, coalesce(s.spent, 0), coalesce(s.reserved, 0)
    FROM tenants AS t
    LEFT JOIN budgets AS b ON b.tenant_id = t.id
    LEFT JOIN spending AS s ON s.tenant_id = t.id AND s.month = {_MONTH}
    WHERE t.id = :tenant_id
""")  # noqa: S608 - a constant
_ALERTS = text("""
    SELECT percent, created_at, spent, monthly_limit FROM budget_alerts
    WHERE tenant_id = :tenant_id AND month = :month ORDER BY percent
""")


async def _read_state(
    connection: AsyncConnection, tenant_id: int, default_limit: Decimal | None
) -> BudgetState:
    found = (await connection.execute(_STATE, {"tenant_id": tenant_id})).one()
    tenant, month, own_limit, spent, reserved = found
    alerts = await connection.execute(_ALERTS, {"tenant_id": tenant_id, "month": month})
    return BudgetState(
        tenant=tenant,
        month=month,
        monthly_limit=default_limit if own_limit is None else own_limit,
        is_own=own_limit is not None,
        spent=spent,
        reserved=reserved,
        alerts=[Alert(*row) for row in alerts.all()],
    )
