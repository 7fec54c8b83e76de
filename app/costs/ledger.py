"""The ledger of generations: what each one took, cost and saved.

What costs money is held back in the tenant's budget before it begins, in one short transaction, so
that whatever runs at the same time, in however many processes, stays within the budget together.
Everything else is written behind the answer; see `app/db/write_behind.py`.

When the database is away: a generation that costs money is refused, because its budget cannot be
asked; a free one goes on. A row that is lost for want of room leaves a priced generation at the most
that it could have cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.costs.budgets import note_alerts, note_refusal
from app.costs.prices import FREE, Payer, Price
from app.db.models.costs import UsageMode
from app.db.transactions import in_transaction
from app.db.write_behind import CAPACITY, WriteBehind
from app.errors import BudgetExhausted, FootnoteError, GenerationUnavailable
from app.telemetry import COST, SAVED, TOKENS


@dataclass(frozen=True, slots=True)
class Listing:
    """A model as it stands in the ledger. `is_local`: what it generates stays with the operator."""

    model: str
    price: Price
    tier: str = ""
    provider: str = ""
    is_local: bool = False


@dataclass(frozen=True, slots=True)
class Spent:
    """What a generation took; `cached_tokens` are part of `prompt_tokens`."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    took_ms: int


NOTHING_SPENT = Spent(0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the ledger; `id` makes writing it twice the same as once."""

    id: UUID
    payer: Payer
    listing: Listing
    mode: UsageMode
    spent: Spent
    cost: Decimal
    saved: Decimal
    at: datetime


@dataclass(frozen=True, slots=True)
class Reservation:
    """Money held back: `amount` of the payer's budget of this month."""

    id: UUID
    payer: Payer
    listing: Listing
    month: date
    amount: Decimal


@dataclass(frozen=True, slots=True)
class _Settlement:
    """The end of a reservation; without an entry it is as if it had never been."""

    reservation: Reservation
    entry: Entry | None


class Ledger:
    """`reference` is the price that local models are compared with, to say what they save."""

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        reference: Price,
        default_limit: Decimal | None = None,
        capacity: int = CAPACITY,
    ) -> None:
        self._engine = engine
        self._reference = reference
        self._default_limit = default_limit
        self._rows = WriteBehind[Entry | _Settlement](
            engine, self._store, table="usage", capacity=capacity
        )

    async def close(self) -> None:
        await self._rows.close()

    async def flush(self) -> None:
        """Until everything booked so far is written."""
        await self._rows.flush()

    # --- before a generation ---------------------------------------------------------------------

    async def reserve(self, payer: Payer, listing: Listing, worst: Decimal) -> Reservation:
        """Hold back the most that a generation may cost.

        Raises BudgetExhausted when that is more than is left of the month's budget, and
        GenerationUnavailable when the budget cannot be asked.
        """
        id_ = uuid4()
        try:
            month = await in_transaction(
                self._engine.begin,
                lambda connection: _reserve(
                    connection, id_, payer, listing, worst, self._default_limit
                ),
            )
            if month is None:
                await in_transaction(
                    self._engine.begin,
                    lambda connection: note_refusal(
                        connection, payer.tenant_id, self._default_limit
                    ),
                )
        except FootnoteError as error:
            raise GenerationUnavailable(
                f"{listing.model} costs money, and the budget cannot be asked.",
                hint="Try again when the database is back, or ask a model that costs nothing.",
            ) from error
        if month is None:
            raise BudgetExhausted(f"This month's budget does not allow {listing.model} any more.")
        return Reservation(id_, payer, listing, month, worst)

    # --- after it --------------------------------------------------------------------------------

    def book(
        self,
        payer: Payer,
        listing: Listing,
        spent: Spent,
        *,
        mode: UsageMode = "generated",
        reservation: Reservation | None = None,
    ) -> Decimal:
        """Write a generation down, later; gives what it cost. Never waits and never raises."""
        cost = listing.price.of(
            spent.prompt_tokens,
            spent.completion_tokens,
            cached_tokens=spent.cached_tokens,
            took_ms=spent.took_ms,
        )
        saved = self._saved_by_local(spent, cost) if listing.is_local else Decimal(0)
        entry = _entry(payer, listing, mode, spent, cost, saved, reservation)
        self._rows.put(_Settlement(reservation, entry) if reservation else entry)
        _count(entry)
        return cost

    def book_cached(self, payer: Payer, model: str, saved: Decimal) -> None:
        """Write down an answer that a cache gave; `saved` is what `model` had cost to write it."""
        listing = Listing(model, FREE, provider="cache")
        entry = _entry(payer, listing, "cached", NOTHING_SPENT, Decimal(0), saved, None)
        self._rows.put(entry, may_wait=True)
        _count(entry)

    def release(self, reservation: Reservation) -> None:
        """Give back what was held: the generation did not happen."""
        self._rows.put(_Settlement(reservation, None))

    def _saved_by_local(self, spent: Spent, cost: Decimal) -> Decimal:
        elsewhere = self._reference.of(spent.prompt_tokens, spent.completion_tokens, took_ms=0)
        return max(Decimal(0), elsewhere - cost)

    async def _store(
        self, connection: AsyncConnection, batch: Sequence[Entry | _Settlement]
    ) -> None:
        await _store(connection, batch, self._default_limit)


def _entry(
    payer: Payer,
    listing: Listing,
    mode: UsageMode,
    spent: Spent,
    cost: Decimal,
    saved: Decimal,
    reservation: Reservation | None,
) -> Entry:
    return Entry(
        id=reservation.id if reservation else uuid4(),
        payer=payer,
        listing=listing,
        mode=mode,
        spent=spent,
        cost=cost,
        saved=saved,
        at=datetime.now(UTC),
    )


def _count(entry: Entry) -> None:
    model = entry.listing.model
    if entry.mode != "cached":
        TOKENS.labels(model, "prompt").inc(entry.spent.prompt_tokens)
        TOKENS.labels(model, "completion").inc(entry.spent.completion_tokens)
        COST.labels(model).inc(float(entry.cost))
    SAVED.labels("cache" if entry.mode == "cached" else "local").inc(float(entry.saved))


# --- in the database ------------------------------------------------------------------------------

_HOLD = text("""
    INSERT INTO spending (tenant_id, month)
    VALUES (:tenant_id, date_trunc('month', now() AT TIME ZONE 'UTC')::date)
    ON CONFLICT DO NOTHING
""")
# Whoever comes second waits for the row and then judges by what the first one left.
_TAKE = text("""
    UPDATE spending SET reserved = reserved + :worst
    FROM (
      SELECT coalesce((SELECT monthly_limit FROM budgets WHERE tenant_id = :tenant_id),
                      CAST(:default_limit AS numeric)) AS most
    ) AS budget
    WHERE tenant_id = :tenant_id AND month = date_trunc('month', now() AT TIME ZONE 'UTC')::date
      AND (most IS NULL OR spent + reserved + :worst <= most)
    RETURNING month, now()
""")
# Rows as one value: a statement's parameters for each would take longer than writing them.
_INSERT = text("""
    INSERT INTO usage (id, tenant_id, key_id, model, tier, provider, collections, mode,
      prompt_tokens, completion_tokens, cached_tokens, took_ms, cost, saved, created_at)
    SELECT * FROM json_to_recordset(CAST(:rows AS json)) AS row (
      id uuid, tenant_id int, key_id uuid, model text, tier text, provider text,
      collections text[], mode text, prompt_tokens int, completion_tokens int,
      cached_tokens int, took_ms int, cost numeric, saved numeric, created_at timestamptz)
    ON CONFLICT (id) DO NOTHING
""")
# Done twice, the second one finds no row that is still reserved.
_SETTLE = text("""
    WITH settled AS (
      UPDATE usage SET mode = :mode, prompt_tokens = :prompt_tokens,
        completion_tokens = :completion_tokens, cached_tokens = :cached_tokens,
        took_ms = :took_ms, cost = :cost, saved = :saved
      WHERE id = :id AND mode = 'reserved'
      RETURNING tenant_id
    )
    UPDATE spending SET reserved = reserved - :held, spent = spent + :cost
    FROM settled WHERE spending.tenant_id = settled.tenant_id AND month = :month
""")
_RELEASE = text("""
    WITH released AS (DELETE FROM usage WHERE id = :id AND mode = 'reserved' RETURNING tenant_id)
    UPDATE spending SET reserved = reserved - :held
    FROM released WHERE spending.tenant_id = released.tenant_id AND month = :month
""")


async def _reserve(
    connection: AsyncConnection,
    id_: UUID,
    payer: Payer,
    listing: Listing,
    worst: Decimal,
    default_limit: Decimal | None,
) -> date | None:
    """The month that it was taken from, None when its budget has not that much left."""
    asked = {"tenant_id": payer.tenant_id, "worst": worst, "default_limit": default_limit}
    await connection.execute(_HOLD, {"tenant_id": payer.tenant_id})
    taken = (await connection.execute(_TAKE, asked)).one_or_none()
    if taken is None:
        return None
    month, now = taken
    entry = Entry(
        id=id_,
        payer=payer,
        listing=listing,
        mode="reserved",
        spent=NOTHING_SPENT,
        cost=worst,
        saved=Decimal(0),
        at=now,
    )
    await _insert(connection, [entry])
    return month


async def _store(
    connection: AsyncConnection,
    batch: Sequence[Entry | _Settlement],
    default_limit: Decimal | None,
) -> None:
    free = [item for item in batch if isinstance(item, Entry)]
    if free:
        await _insert(connection, free)
    # In one order everywhere, so that two processes never wait for each other.
    settlements = sorted(
        (item for item in batch if isinstance(item, _Settlement)),
        key=lambda one: (one.reservation.payer.tenant_id, one.reservation.month),
    )
    for one in settlements:
        held = {"held": one.reservation.amount, "month": one.reservation.month}
        if one.entry is None:
            await connection.execute(_RELEASE, {"id": one.reservation.id, **held})
        else:
            await connection.execute(_SETTLE, {**_row(one.entry), **held})
    months = {(one.reservation.payer.tenant_id, one.reservation.month) for one in settlements}
    for tenant_id, month in sorted(months):
        await note_alerts(connection, tenant_id, month, default_limit)


async def _insert(connection: AsyncConnection, entries: Sequence[Entry]) -> None:
    rows = to_json([_row(entry) for entry in entries]).decode()
    await connection.execute(_INSERT, {"rows": rows})


def _row(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "tenant_id": entry.payer.tenant_id,
        "key_id": entry.payer.key_id,
        "model": entry.listing.model,
        "tier": entry.listing.tier,
        "provider": entry.listing.provider,
        "collections": list(entry.payer.collections),
        "mode": entry.mode,
        "prompt_tokens": entry.spent.prompt_tokens,
        "completion_tokens": entry.spent.completion_tokens,
        "cached_tokens": entry.spent.cached_tokens,
        "took_ms": entry.spent.took_ms,
        "cost": entry.cost,
        "saved": entry.saved,
        "created_at": entry.at,
    }
