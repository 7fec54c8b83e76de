"""The parts of benchmarks/pool.py that decide what its numbers mean."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from dataclasses import asdict
from math import inf
from time import perf_counter

import pytest

from benchmarks.pool_cell import one
from benchmarks.pool_oracle import latencies
from benchmarks.pool_systems import Broken, Unanswered, ask
from benchmarks.pool_trace import (
    LOAD_SECONDS,
    SCENARIOS,
    Arrival,
    Machine,
    Outage,
    Scenario,
    arrivals_of,
    machines_of,
)
from tests.doubles.ollama import OllamaDouble, running_ollama

HEALTHY = SCENARIOS["healthy"]
TWO = [Machine(100.0, 2), Machine(10.0, 1)]


def burst(*answers: int) -> list[Arrival]:
    return [Arrival(f"r{place}", 0.0, 60, count) for place, count in enumerate(answers)]


def test_the_oracle_reads_then_writes() -> None:
    [took] = latencies([Machine(100.0, 1)], HEALTHY, burst(50)).values()
    assert took == pytest.approx(60 / 1500 + 50 / 100)


def test_the_oracle_slows_answers_that_are_written_side_by_side() -> None:
    first, second = latencies([Machine(100.0, 2)], HEALTHY, burst(50, 50)).values()
    assert first == second == pytest.approx(60 / 1500 + 1.3 * 50 / 100)


def test_the_oracle_lines_up_beyond_the_slots() -> None:
    first, second = latencies([Machine(100.0, 1)], HEALTHY, burst(50, 50)).values()
    assert second == pytest.approx(2 * first)


def test_the_oracle_waits_for_a_fast_instance_rather_than_take_a_slow_one() -> None:
    *_, third = latencies(TWO, HEALTHY, burst(50, 50, 50)).values()
    assert third == pytest.approx(2 * (60 / 1500) + 1.3 * 0.5 + 0.5)


def test_the_oracle_avoids_what_will_fail() -> None:
    broken = Scenario("broken", Outage(0.1, inf, 0.0))
    took = latencies(TWO, broken, burst(50))
    assert took["r0"] == pytest.approx(60 / 150 + 50 / 10)


def test_the_oracle_knows_how_long_a_load_takes() -> None:
    half_cold = SCENARIOS["half_cold"]
    took = latencies([Machine(100.0, 1)], half_cold, burst(50))
    assert took["r0"] == pytest.approx(LOAD_SECONDS + 60 / 1500 + 50 / 100)


def test_traces_are_the_same_every_time_and_of_the_load_asked_for() -> None:
    machines = machines_of(shuffled=False, seed=3)
    one_time, another = (arrivals_of(machines, load=0.7, seed=3) for _ in range(2))
    assert one_time == another
    light = arrivals_of(machines, load=0.35, seed=3)
    assert len(one_time) / len(light) == pytest.approx(2, rel=0.2)
    assert len(one_time[0].prompt.split()) == one_time[0].prompt_tokens
    shuffled = machines_of(shuffled=True, seed=3)
    assert sorted(each.speed for each in shuffled) == sorted(each.speed for each in machines)
    assert shuffled != machines


@pytest.fixture
def double() -> Iterator[OllamaDouble]:
    with running_ollama() as running:
        yield running


async def test_the_double_takes_the_time_that_the_oracle_computes(double: OllamaDouble) -> None:
    machine = Machine(50.0, 2)
    double.set(**asdict(machine.behaviour(1.0)) | {"load_seconds": 0.0})
    port = int(double.url.rsplit(":", 1)[1])

    async def answered(arrival: Arrival) -> float:
        started = perf_counter()
        pieces = [piece async for piece in ask(port, arrival.prompt, 10.0)]
        assert "".join(pieces) == arrival.answer
        return perf_counter() - started

    arrivals = burst(30, 60, 20)
    control = sorted(latencies([machine], HEALTHY, arrivals).values())
    for _ in range(5):  # a machine that does other work takes longer, never shorter
        took = sorted(await asyncio.gather(*(answered(arrival) for arrival in arrivals)))
        assert all(ours > 0.95 * best for ours, best in zip(took, control, strict=True))
        if took == pytest.approx(control, rel=0.2):
            return
    pytest.fail(f"{took} is not {control}")


async def test_text_of_another_answer_is_noticed() -> None:
    async def spliced(prompt: str) -> AsyncGenerator[str]:
        yield "r0.1 r0.2"
        yield " r0.2"

    [arrival] = burst(3)
    outcome = await one(spliced, arrival, asyncio.get_running_loop().time(), 5.0)
    assert outcome.fate == "wrong"


@pytest.mark.parametrize(("after", "error"), [(0, Unanswered), (2, Broken)])
async def test_a_cut_is_told_from_no_answer(
    double: OllamaDouble, after: int, error: type[Exception]
) -> None:
    double.set(fault="cut", fault_after_tokens=after)
    port = int(double.url.rsplit(":", 1)[1])
    with pytest.raises(error):
        [_ async for _ in ask(port, burst(5)[0].prompt, 10.0)]
