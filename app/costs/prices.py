"""What a generation costs. Money is exact: decimal here, numeric in the database, never float."""

from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

DECIMALS = Decimal("1e-12")
"""What a price is rounded to: a token at 0.001 per million is still a whole number of these."""

_MILLION = Decimal(1_000_000)
_MS_PER_HOUR = Decimal(3_600_000)


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs, in the currency of the settings.

    A provider charges by tokens; `cached_per_million` is for prompt tokens that it had in its own
    cache, None where it makes no difference. A local instance costs by the time that it works:
    `per_hour` is the price of one slot busy for an hour, that of the machine over its slots.
    Raises ValueError for a price that is negative or no number.
    """

    prompt_per_million: Decimal = Decimal(0)
    completion_per_million: Decimal = Decimal(0)
    cached_per_million: Decimal | None = None
    per_hour: Decimal = Decimal(0)

    def __post_init__(self) -> None:
        for amount in self._amounts():
            if not amount.is_finite() or amount < 0:
                raise ValueError(f"a price is a number of 0 or more, not {amount}")

    @property
    def is_free(self) -> bool:
        return not any(self._amounts())

    def of(
        self, prompt_tokens: int, completion_tokens: int, *, cached_tokens: int = 0, took_ms: int
    ) -> Decimal:
        """The price of one generation; `cached_tokens` are those of the prompt, not beside them."""
        cached_per_million = (
            self.prompt_per_million if self.cached_per_million is None else self.cached_per_million
        )
        by_tokens = (
            (prompt_tokens - cached_tokens) * self.prompt_per_million
            + cached_tokens * cached_per_million
            + completion_tokens * self.completion_per_million
        ) / _MILLION
        return (by_tokens + took_ms * self.per_hour / _MS_PER_HOUR).quantize(DECIMALS)

    def _amounts(self) -> tuple[Decimal, ...]:
        cached = () if self.cached_per_million is None else (self.cached_per_million,)
        return (self.prompt_per_million, self.completion_per_million, *cached, self.per_hour)


FREE = Price()


def written_amount(amount: Decimal) -> str:
    """Every digit that says something: `0.000125`, `12`, `0`."""
    written = f"{amount:f}"
    return written.rstrip("0").rstrip(".") if "." in written else written


@dataclass(frozen=True, slots=True)
class Payer:
    """Who a generation is booked to; `collections` are those that the question was put to."""

    tenant_id: int
    key_id: UUID | None
    collections: tuple[str, ...]
