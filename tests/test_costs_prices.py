from decimal import Decimal

import pytest

from app.costs.prices import FREE, Price

CLOUD = Price(
    prompt_per_million=Decimal("0.15"),
    completion_per_million=Decimal("0.60"),
    cached_per_million=Decimal("0.075"),
)


def test_tokens_are_charged_by_the_million() -> None:
    assert CLOUD.of(1_000_000, 1_000_000, took_ms=5) == Decimal("0.75")
    assert CLOUD.of(1, 0, took_ms=0) == Decimal("0.00000015")


def test_cached_tokens_are_a_part_of_the_prompt() -> None:
    assert CLOUD.of(1000, 0, cached_tokens=1000, took_ms=0) == Decimal("0.000075")
    without = Price(prompt_per_million=Decimal("0.15"))
    assert without.of(1000, 0, cached_tokens=1000, took_ms=0) == Decimal("0.00015")


def test_a_local_slot_costs_by_the_hour() -> None:
    assert Price(per_hour=Decimal("1.20")).of(500, 100, took_ms=90_000) == Decimal("0.03")


def test_a_million_small_prices_add_up_exactly() -> None:
    one = CLOUD.of(7, 3, took_ms=0)
    assert one * 1_000_000 == CLOUD.of(7_000_000, 3_000_000, took_ms=0)


def test_only_a_price_of_nothing_is_free() -> None:
    assert FREE.is_free
    assert FREE.of(10_000, 10_000, took_ms=10_000) == 0
    assert not CLOUD.is_free
    assert not Price(per_hour=Decimal("0.5")).is_free


@pytest.mark.parametrize("wrong", ["-1", "NaN", "Infinity"])
def test_what_is_no_price_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        Price(completion_per_million=Decimal(wrong))
