"""The scheduler that benchmarks/pool.py compares with: it knows everything, and is greedy.

It knows every answer's length, every speed, and when an instance will fail and be well again. Each
request goes, as it arrives, to where it adds least to the sum of all latencies: its own, and what
it costs those that were sent before it. Requests that come later are not thought of, so it is no
bound, but hard to beat; to look at its own latency alone was 5 % worse on the mean, and to wait for
free slots 10 %. Times are those of the double: reading at its own speed, writing slower the more
slots are taken, a line in order of arrival. The network and the processes cost nothing here.
"""

from collections import deque
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field
from math import inf

from benchmarks.pool_trace import LOAD_SECONDS, Arrival, Machine, Outage, Scenario, fastest
from tests.doubles.ollama import Behaviour


@dataclass
class Job:
    name: str
    prefill_seconds: float
    tokens: float


@dataclass
class Instance:
    """`outages` do not overlap. What runs when one begins at rate 0 stands still until its end."""

    behaviour: Behaviour
    outages: list[Outage]
    now: float = 0.0
    running: list[Job] = field(default_factory=list)
    line: deque[Job] = field(default_factory=deque)

    def job(self, arrival: Arrival) -> Job:
        seconds = self.behaviour.prefill_seconds(arrival.prompt_tokens)
        return Job(arrival.name, seconds, arrival.answer_tokens)

    def add(self, job: Job) -> None:
        if len(self.running) < self.behaviour.slots:
            self.running.append(job)
        else:
            self.line.append(job)

    def added_by(self, arrival: Arrival) -> float:
        """By how much the sum of all ends grows if it comes here now; where it never ends, inf."""
        before = dict(self._copy().run(inf))
        trial = self._copy()
        trial.add(trial.job(arrival))
        after = dict(trial.run(inf))
        return sum(after.values()) - sum(before.values()) if arrival.name in after else inf

    def _copy(self) -> "Instance":
        running = [copy(job) for job in self.running]
        line = deque(copy(job) for job in self.line)
        return Instance(self.behaviour, self.outages, self.now, running, line)

    def run(self, until: float) -> Iterable[tuple[str, float]]:
        """Names of jobs with the times at which they end, up to `until`."""
        while self.now < until:
            rate, next_change = self._rate()
            if not self.running:
                self.now = until
                return
            step = self.behaviour.step_seconds(len(self.running))
            if rate:
                left = min(each.prefill_seconds or each.tokens * step for each in self.running)
                soonest = self.now + left / rate
            else:
                soonest = inf
            reached = min(until, next_change, soonest)
            if reached == inf:
                return
            self._work((reached - self.now) * rate, step)
            self.now = reached
            for job in [each for each in self.running if each.tokens <= 1e-9]:
                self.running.remove(job)
                if self.line:
                    self.running.append(self.line.popleft())
                yield job.name, self.now

    def _rate(self) -> tuple[float, float]:
        """The part of its speed that it has now, and until when."""
        next_change = inf
        for outage in self.outages:
            if outage.since <= self.now < outage.until:
                return outage.rate, outage.until
            if outage.since > self.now:
                next_change = min(next_change, outage.since)
        return 1.0, next_change

    def _work(self, seconds: float, step: float) -> None:
        for job in self.running:
            if job.prefill_seconds > 0:
                job.prefill_seconds -= seconds
                if job.prefill_seconds <= 1e-9:
                    job.prefill_seconds = 0.0
            else:
                job.tokens -= seconds / step


def latencies(
    machines: list[Machine], scenario: Scenario, arrivals: list[Arrival]
) -> dict[str, float]:
    """Seconds from each request's arrival to its end, by name. Cold instances load from 0 on."""
    cold, broken = scenario.cold(machines), fastest(machines)
    instances: list[Instance] = []
    for place, machine in enumerate(machines):
        outages = [Outage(0.0, LOAD_SECONDS, 0.0)] if place in cold else []
        if scenario.outage and place == broken:
            outages.append(scenario.outage)
        instances.append(Instance(machine.behaviour(1.0), outages))
    ended: dict[str, float] = {}
    for arrival in arrivals:
        for instance in instances:
            ended.update(instance.run(arrival.at))
        chosen = min(instances, key=lambda each: each.added_by(arrival))
        chosen.add(chosen.job(arrival))
    for instance in instances:
        ended.update(instance.run(inf))
    return {each.name: ended[each.name] - each.at for each in arrivals}
