"""What the ledger says, added up: by day, tenant, model, collection and the like."""

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal, get_args

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.costs.prices import written_amount
from app.db.transactions import in_transaction
from app.errors import InvalidInput

Dimension = Literal["day", "tenant", "model", "collection", "tier", "provider", "key"]
DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
MAX_DAYS = 366 * 5
MAX_ROWS = 10_000

# A question that was put to several collections is a group of its own: no cost counts twice.
_EXPRESSIONS: dict[Dimension, str] = {
    "day": "to_char((created_at AT TIME ZONE 'UTC')::date, 'YYYY-MM-DD')",
    "tenant": "(SELECT name FROM tenants WHERE id = tenant_id)",
    "model": "model",
    "collection": "array_to_string(collections, ' + ')",
    "tier": "tier",
    "provider": "provider",
    "key": "coalesce((SELECT name FROM api_keys WHERE id = key_id), '')",
}
# By what is cheap to compare; and by the ids of keys, of which two may have one name.
_GROUPED: dict[Dimension, str] = {
    "day": "(created_at AT TIME ZONE 'UTC')::date",
    "tenant": "tenant_id",
    "key": "key_id",
    "collection": "collections",
}


@dataclass(frozen=True, slots=True)
class Period:
    """Days (UTC), both included."""

    first: date
    last: date

    def __post_init__(self) -> None:
        days = (self.last - self.first).days + 1
        if days < 1:
            raise InvalidInput(f"{self.first} is after {self.last}.")
        if days > MAX_DAYS:
            raise InvalidInput(f"A report covers {MAX_DAYS} days at the most.")


@dataclass(frozen=True, slots=True)
class CostRow:
    """One group; `group` holds a value for each dimension asked for, in that order.

    `cost` includes what is `reserved` for generations that run, or whose process was killed.
    `cached_tokens` are part of `prompt_tokens`. `cache_hits` are answers that a cache gave.
    """

    group: tuple[str, ...]
    generations: int
    cache_hits: int
    interrupted: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    took_ms: int
    cost: Decimal
    reserved: Decimal
    saved_by_cache: Decimal
    saved_by_local: Decimal


@dataclass(frozen=True, slots=True)
class CostReport:
    """Rows in the order of their groups; `total` has no group."""

    period: Period
    by: tuple[Dimension, ...]
    rows: Sequence[CostRow]
    total: CostRow


def dimensions(given: str) -> tuple[Dimension, ...]:
    """The dimensions of a list with commas; raises InvalidInput for one that is none."""
    names = [name.strip() for name in given.split(",") if name.strip()]
    unknown = [name for name in names if name not in DIMENSIONS]
    if unknown:
        raise InvalidInput(
            f"Costs cannot be grouped by {', '.join(unknown)[:200]}.",
            hint=f"Group them by some of: {', '.join(DIMENSIONS)}.",
        )
    return tuple(one for one in dict.fromkeys(names) if one in DIMENSIONS)


def written_as_csv(report: CostReport, currency: str) -> str:
    """The rows, under a line with their names; no cell begins like a formula."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow([*report.by, *_CSV_COLUMNS, "currency"])
    for row in report.rows:
        writer.writerow(
            [
                *(f"'{value}" if value.startswith(_FORMULA) else value for value in row.group),
                *(row.generations, row.cache_hits, row.interrupted),
                *(row.prompt_tokens, row.completion_tokens, row.cached_tokens, row.took_ms / 1000),
                *map(
                    written_amount, (row.cost, row.reserved, row.saved_by_cache, row.saved_by_local)
                ),
                currency,
            ]
        )
    return buffer.getvalue()


_CSV_COLUMNS = (
    *("generations", "cache_hits", "interrupted"),
    *("prompt_tokens", "completion_tokens", "cached_tokens", "seconds"),
    *("cost", "reserved", "saved_by_cache", "saved_by_local"),
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""


class CostReports:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def read(
        self,
        period: Period,
        by: tuple[Dimension, ...],
        *,
        tenant_id: int | None,
        collections: frozenset[str] | None = None,
    ) -> CostReport:
        """Add up a period; of all tenants where `tenant_id` is None.

        With `collections`, only what was asked of these alone. Raises InvalidInput when the groups
        are more than `MAX_ROWS`.
        """
        conditions = ["created_at >= :first", "created_at < :end"]
        if tenant_id is not None:
            conditions.append("tenant_id = :tenant_id")
        if collections is not None:
            conditions.append("collections <@ CAST(:collections AS text[])")
        parameters: dict[str, object] = {
            "first": _begin_of(period.first),
            "end": _begin_of(period.last + timedelta(days=1)),
            "tenant_id": tenant_id,
            "collections": sorted(collections or ()),
        }
        used = " AND ".join(conditions)

        rows = await in_transaction(
            self._engine.begin, lambda connection: _read(connection, by, used, parameters)
        )
        return CostReport(period, by, rows, _total(rows))


def _begin_of(day: date) -> datetime:
    return datetime.combine(day, time.min, UTC)


def _total(rows: Sequence[CostRow]) -> CostRow:
    numbers: list[tuple[Any, ...]] = [_NOTHING, *(astuple(row)[1:] for row in rows)]
    sums: list[Any] = [sum(column) for column in zip(*numbers, strict=True)]
    return CostRow((), *sums)


_NOTHING = (0, 0, 0, 0, 0, 0, 0, Decimal(0), Decimal(0), Decimal(0), Decimal(0))


async def _read(
    connection: AsyncConnection,
    by: tuple[Dimension, ...],
    condition: str,
    parameters: dict[str, object],
) -> list[CostRow]:
    shown = "".join(f"{_EXPRESSIONS[one]}, " for one in by)
    grouped = ", ".join(_GROUPED.get(one, _EXPRESSIONS[one]) for one in by)
    places = ", ".join(str(place) for place in range(1, len(by) + 1))
    found = await connection.execute(
        text(f"""
            SELECT {shown}
              count(*) FILTER (WHERE mode <> 'cached'),
              count(*) FILTER (WHERE mode = 'cached'),
              count(*) FILTER (WHERE mode = 'interrupted'),
              coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0),
              coalesce(sum(cached_tokens), 0), coalesce(sum(took_ms), 0),
              coalesce(sum(cost), 0),
              coalesce(sum(cost) FILTER (WHERE mode = 'reserved'), 0),
              coalesce(sum(saved) FILTER (WHERE mode = 'cached'), 0),
              coalesce(sum(saved) FILTER (WHERE mode <> 'cached'), 0)
            FROM usage WHERE {condition}
            {f"GROUP BY {grouped} ORDER BY {places}" if by else ""}
            LIMIT {MAX_ROWS + 1}
        """),  # noqa: S608 - expressions of this module
        {name: value for name, value in parameters.items() if f":{name}" in condition},
    )
    rows = [CostRow(tuple(row[: len(by)]), *row[len(by) :]) for row in found.all()]
    if len(rows) > MAX_ROWS:
        raise InvalidInput(
            f"That makes more than {MAX_ROWS} rows.", hint="Ask for fewer days or fewer groups."
        )
    return rows
