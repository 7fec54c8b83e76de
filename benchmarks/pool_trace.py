"""What a round of benchmarks/pool.py consists of: machines, arrivals, and what happens to them."""

import random
from dataclasses import dataclass, replace
from math import inf, log
from statistics import fmean
from typing import Any

from tests.doubles.ollama import Behaviour

MODEL = "llama3.1:8b"
CONTEXT_TOKENS = 4096
SPEEDS = tuple(round(120 * 10 ** (-place / 7), 1) for place in range(8))
"""Tokens per second of one answer alone: 120 down to 12, each 28 % slower than the one before."""
SLOTS = (4, 4, 4, 2, 2, 2, 1, 1)
SLOWDOWN = 0.3
"""Each further answer beside it makes a token take this much longer."""
LOAD_SECONDS = 8.0

PROMPT_TOKENS = (50, 800)
MEDIAN_TOKENS = 40
SIGMA = 0.8
ANSWER_TOKENS = (4, 400)

WARM_UP_SECONDS = 10.0
"""Not counted: speeds are learnt from traffic. Where half is cold, everything is counted."""
FAULT_SECONDS = (20.0, 50.0)
CELL_SECONDS = 80.0
SILENCE_SECONDS = 20.0
"""After so long without a first token a balancer that has such a limit gives up on an instance."""
TIMEOUT_SECONDS = 60.0
"""After so long a client gives up; also what a failure is charged."""


@dataclass(frozen=True)
class Machine:
    speed: float
    slots: int

    def behaviour(self, scale: float) -> Behaviour:
        return Behaviour.of_speed(
            self.speed / scale,
            slots=self.slots,
            slowdown=SLOWDOWN,
            load_seconds=LOAD_SECONDS * scale,
        )

    def requests_per_second(self) -> float:
        """With every slot taken, of requests of the mean size."""
        behaviour = self.behaviour(1.0)
        seconds = behaviour.prefill_seconds(round(fmean(PROMPT_TOKENS)))
        seconds += mean_answer_tokens() * behaviour.step_seconds(self.slots)
        return self.slots / seconds


@dataclass(frozen=True)
class Arrival:
    """Times are in seconds from the beginning of the round."""

    name: str
    at: float
    prompt_tokens: int
    answer_tokens: int

    @property
    def prompt(self) -> str:
        """Nothing of it is in any other prompt, so that no cache helps."""
        script = f"[write {self.answer_tokens} tokens as {self.name}]"
        filler = (f"{self.name}w{n}" for n in range(self.prompt_tokens - len(script.split())))
        return f"{' '.join(filler)} {script}"

    @property
    def answer(self) -> str:
        return " ".join(f"{self.name}.{n}" for n in range(1, self.answer_tokens + 1))


@dataclass(frozen=True)
class Outage:
    """Between these times the fastest instance works at `rate` of its speed."""

    since: float
    until: float
    rate: float


@dataclass(frozen=True)
class Scenario:
    """`fault` is what of the double's Behaviour changes; None with an outage means a kill."""

    name: str
    outage: Outage | None = None
    fault: dict[str, Any] | None = None
    is_half_cold: bool = False

    @property
    def counts_from(self) -> float:
        return 0.0 if self.is_half_cold else WARM_UP_SECONDS

    def cold(self, machines: list[Machine]) -> set[int]:
        """Every other one from the fastest on."""
        ranked = sorted(range(len(machines)), key=lambda place: -machines[place].speed)
        return set(ranked[::2]) if self.is_half_cold else set()


SCENARIOS = {
    each.name: each
    for each in (
        Scenario("healthy"),
        Scenario("hangs", Outage(*FAULT_SECONDS, 0.0), {"hangs": True}),
        Scenario("slow", Outage(*FAULT_SECONDS, 0.1), {"slowness": 10.0}),
        Scenario("killed", Outage(*FAULT_SECONDS, 0.0)),
        Scenario("cuts", Outage(0.0, inf, 0.0), {"fault": "cut", "fault_after_tokens": 3}),
        Scenario("half_cold", is_half_cold=True),
    )
}


def machines_of(*, shuffled: bool, seed: int) -> list[Machine]:
    speeds, slots = list(SPEEDS), list(SLOTS)
    if shuffled:
        chance = random.Random(f"machines {seed}")
        chance.shuffle(speeds)
        chance.shuffle(slots)
    return [Machine(*each) for each in zip(speeds, slots, strict=True)]


def arrivals_of(machines: list[Machine], *, load: float, seed: int) -> list[Arrival]:
    """Poisson arrivals at `load` times what the machines can do together."""
    chance = random.Random(f"arrivals {seed}")
    rate = load * sum(machine.requests_per_second() for machine in machines)
    arrivals: list[Arrival] = []
    at = chance.expovariate(rate)
    while at < CELL_SECONDS:
        prompt = chance.randint(*PROMPT_TOKENS)
        arrivals.append(Arrival(f"r{len(arrivals)}", at, prompt, answer_tokens(chance)))
        at += chance.expovariate(rate)
    return arrivals


def answer_tokens(chance: random.Random) -> int:
    low, high = ANSWER_TOKENS
    return min(high, max(low, round(chance.lognormvariate(log(MEDIAN_TOKENS), SIGMA))))


def mean_answer_tokens() -> float:
    chance = random.Random(0)
    return fmean(answer_tokens(chance) for _ in range(20_000))


def fastest(machines: list[Machine]) -> int:
    return max(range(len(machines)), key=lambda place: machines[place].speed)


def scaled(arrivals: list[Arrival], scale: float) -> list[Arrival]:
    return [replace(each, at=each.at * scale) for each in arrivals]
