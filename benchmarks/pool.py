"""Does the pool choose better among eight unequal Ollama servers than other balancers do?

Hypothesis: at 0.7 of what the instances can do together, the mean, p95 and p99 of the total latency
are at most 1.05, 1.12 and 1.25 times those of a scheduler that knows everything beforehand, nothing
fails, and no other balancer comes as near, also while the fastest instance hangs, is ten times
slower, is killed and comes back, cuts its streams, or while half of the instances are cold.

Control: HAProxy (leastconn, and first with servers ranked by hand, both with maxconn), nginx
least_conn, LiteLLM's Router and least connections weighted by slots, each under the same requests
at the same times, before eight instances of its own; and the oracle of pool_oracle.py.

Caveats: the instances are the double of tests/doubles/ollama over real sockets: processes that keep
to Ollama's protocol and to times that they are told (120 to 12 tokens a second, 4,4,4,2,2,2,1,1
slots, each further answer 30 % slower, prompts read 15 times faster than written), not models.
Prompts have nothing in common, so caches help nobody. Failures are charged the client's timeout of
60 s. The first 10 s of 80 are not counted, except where half is cold. The fault lasts from 20 s
to 50 s; the instance that cuts does so throughout. The others give up on an instance that says
nothing for 20 s, which decides their p99 under a hang. With `--time-scale` below 1 what is fixed
inside a balancer (rests, probe intervals) is not scaled: for development only.

A round is one scenario, load, order and seed, and takes about 95 s for `--at-once` contenders:
five side by side, then LiteLLM alone, whose router takes half a core and would slow the others. All
of it, six scenarios, three loads, two orders and five seeds, takes 9 h 30 min, half of that without
LiteLLM. `disturbed` marks cells in which the machine had no time: requests were sent more than 20 ms
late (p99), or tokens came more than 10 ms late on average.

    python -m benchmarks.pool [--systems footnote weighted …] [--scenarios healthy hangs …]
        [--load 0.5 0.7 0.9] [--seeds 1 2 3 4 5] [--order ranked shuffled] [--at-once 5] [--record]
"""

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.pool_fleet import Instances
from benchmarks.pool_oracle import latencies
from benchmarks.pool_systems import HEAVY_SYSTEMS, SYSTEMS
from benchmarks.pool_trace import (
    CELL_SECONDS,
    SCENARIOS,
    SPEEDS,
    TIMEOUT_SECONDS,
    Arrival,
    Machine,
    Scenario,
    arrivals_of,
    fastest,
    machines_of,
    scaled,
)

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "pool.json"
PERCENTILES = {"p95": 0.95, "p99": 0.99}
LATE_REQUESTS_SECONDS = 0.02
LATE_TOKENS_SECONDS = 0.01


@dataclass(frozen=True)
class Round:
    scenario: Scenario
    load: float
    order: str
    seed: int
    scale: float

    @property
    def machines(self) -> list[Machine]:
        return machines_of(shuffled=self.order == "shuffled", seed=self.seed)

    @property
    def arrivals(self) -> list[Arrival]:
        return arrivals_of(self.machines, load=self.load, seed=self.seed)

    def key(self, system: str) -> str:
        at_scale = "" if self.scale == 1 else f"/{self.scale:g}"
        place = f"{self.scenario.name}/{self.load:g}/{self.order}/{self.seed}"
        return f"{place}/{system}{at_scale}"


# --- running -------------------------------------------------------------------------------------


class Contender:
    """A system's cell process, from its start to its result."""

    def __init__(self, system: str, instances: Instances) -> None:
        self.system = system
        self.instances = instances
        self.missing = ""
        self._process: asyncio.subprocess.Process

    async def get_ready(self, this: Round) -> None:
        machines = this.machines
        cold = this.scenario.cold(machines)
        await self.instances.prepare(machines, this.scale, cold)
        order = {
            "system": self.system,
            "urls": self.instances.urls,
            "machines": [asdict(each) for each in machines],
            "arrivals": [asdict(each) for each in scaled(this.arrivals, this.scale)],
            "scale": this.scale,
        }
        clean = {name: value for name, value in os.environ.items() if "FOOTNOTE_" not in name}
        kept = {name: value for name, value in os.environ.items() if "FOOTNOTE_BENCH_" in name}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "benchmarks.pool_cell",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env=clean | kept,
            limit=64 * 1024 * 1024,
        )
        await self._write(json.dumps(order))
        said = await self._read()
        if said.startswith("missing"):
            self.missing = said.partition(" ")[2]
        elif said != "ready":
            raise RuntimeError(f"{self.system} did not start: {said}")

    async def run(self, this: Round, begins_at: float) -> dict[str, Any]:
        """The result of the cell process, and what the instances have seen."""
        await self._write(repr(begins_at))
        faults = asyncio.create_task(self._break(this, begins_at))
        try:
            result = json.loads(await self._read())
            await self._process.wait()
        finally:
            faults.cancel()
            await asyncio.gather(faults, return_exceptions=True)
        for place in range(len(SPEEDS)):
            await self.instances.count(place)
        machines = this.machines
        over = max(
            most - machine.slots
            for most, machine in zip(self.instances.most_in_flight, machines, strict=True)
        )
        late = self.instances.late_seconds / max(1, self.instances.tokens)
        return result | {"over_slots": max(0, over), "tokens_late": late}

    async def _break(self, this: Round, begins_at: float) -> None:
        """The scenario's fault on the fastest instance, and its end."""
        outage, fault = this.scenario.outage, this.scenario.fault
        if outage is None:
            return
        place = fastest(this.machines)
        behaviour = this.machines[place].behaviour(this.scale)
        await until(begins_at + outage.since * this.scale)
        if fault is None:
            await self.instances.kill(place)
        else:
            await self.instances.switch(place, fault)
        if outage.until > CELL_SECONDS:
            return
        await until(begins_at + outage.until * this.scale)
        if fault is None:
            await self.instances.start_again(place, behaviour)
        else:
            well = {name: value for name, value in asdict(behaviour).items() if name in fault}
            await self.instances.switch(place, well)

    async def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()

    async def _read(self) -> str:
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().rstrip("\n")


async def until(epoch_seconds: float) -> None:
    await asyncio.sleep(max(0.0, epoch_seconds - time.time()))


async def run_round(this: Round, contenders: Sequence[Contender]) -> dict[str, dict[str, Any]]:
    """All contenders at the same time; their cells by key."""
    await asyncio.gather(*(contender.get_ready(this) for contender in contenders))
    here = [each for each in contenders if not each.missing]
    begins_at = time.time() + 1.0
    results = await asyncio.gather(*(each.run(this, begins_at) for each in here))
    cells: dict[str, dict[str, Any]] = {}
    for contender, result in zip(here, results, strict=True):
        key = this.key(contender.system)
        cells[key] = judged(this, result) | {"at_once": len(here)}
        print(line_of(key, cells[key]), flush=True)
    return cells


# --- judging -------------------------------------------------------------------------------------


def judged(this: Round, result: dict[str, Any]) -> dict[str, Any]:
    """A cell: latencies as ratios to the oracle's over the same requests.

    Above a load of 1 something must be refused: then only what was admitted is compared, with the
    oracle under the same.
    """
    arrivals = this.arrivals
    counted = {each.name for each in arrivals if each.at >= this.scenario.counts_from}
    outcomes = [each for each in result["outcomes"] if each["name"] in counted]
    fates = Counter(each["fate"] for each in outcomes)
    if this.load > 1:
        refused = {each["name"] for each in result["outcomes"] if each["fate"] == "refused"}
        arrivals = [each for each in arrivals if each.name not in refused]
        outcomes = [each for each in outcomes if each["fate"] != "refused"]
    best = latencies(this.machines, this.scenario, arrivals)
    control = [best[each["name"]] for each in outcomes]
    took = [
        each["last"] / this.scale if each["fate"] == "answered" else TIMEOUT_SECONDS
        for each in outcomes
    ]
    first = [each["first"] / this.scale for each in outcomes if each["first"] is not None]
    refusals = [each["last"] for each in result["outcomes"] if each["fate"] == "refused"]
    lags = [each["lag"] for each in result["outcomes"]]
    failed = len(outcomes) - fates["answered"]
    cell: dict[str, Any] = {
        "requests": len(outcomes),
        "ratio": ratios(took, control),
        "seconds": {name: round(value, 3) for name, value in spread(took).items()},
        "oracle_seconds": {name: round(value, 3) for name, value in spread(control).items()},
        "first_text_p50_seconds": round(median(first), 3) if first else None,
        "failed_percent": round(100 * failed / max(1, len(outcomes)), 2),
        "fates": dict(fates),
        "over_slots": result["over_slots"],
        "lag_p99_ms": round(1000 * percentile(lags, 0.99), 1),
        "loop_late_p99_ms": round(1000 * percentile(result["loop_late"], 0.99), 1),
        "tokens_late_ms": round(1000 * result["tokens_late"], 2),
        "processor_seconds": round(result["processor_seconds"], 1),
    }
    if refusals:
        cell["refused_within_p99_ms"] = round(1000 * percentile(refusals, 0.99), 1)
    cell["disturbed"] = (
        percentile(lags, 0.99) > LATE_REQUESTS_SECONDS
        or result["tokens_late"] > LATE_TOKENS_SECONDS
    )
    return cell


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": fmean(values)} | {
        name: percentile(values, part) for name, part in PERCENTILES.items()
    }


def ratios(took: Sequence[float], control: Sequence[float]) -> dict[str, float]:
    ours, best = spread(took), spread(control)
    return {name: round(ours[name] / best[name], 3) for name in ours}


def percentile(values: Sequence[float], part: float) -> float:
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(part * len(ranked)))] if ranked else 0.0


# --- showing -------------------------------------------------------------------------------------


def line_of(key: str, cell: dict[str, Any]) -> str:
    ratio = "/".join(f"{value:.2f}" for value in cell["ratio"].values())
    fates = " ".join(
        f"{count} {fate}" for fate, count in cell["fates"].items() if fate != "answered"
    )
    marks = [fates, f"{cell['over_slots']} over slots" if cell["over_slots"] else ""]
    if cell["disturbed"]:
        late = f"requests {cell['lag_p99_ms']} ms late, tokens {cell['tokens_late_ms']} ms"
        marks.append(f"disturbed: {late}, {cell['processor_seconds']} s of processor")
    return f"{key:48} {ratio:18} {', '.join(each for each in marks if each)}"


def table(cells: dict[str, dict[str, Any]]) -> str:
    """Medians over the seeds of mean/p95/p99 to the oracle's, and failed percent."""
    groups: dict[tuple[str, str, str], dict[str, list[dict[str, Any]]]] = {}
    for key, cell in cells.items():
        scenario, load, order, _, system, *scale = key.split("/")
        row = groups.setdefault((load, order, "/".join([system, *scale])), {})
        row.setdefault(scenario, []).append(cell)
    names = [name for name in SCENARIOS if any(name in row for row in groups.values())]
    lines = [f"{'load, order, system':38}" + "".join(f"{name:>27}" for name in names)]
    for (load, order, system), row in sorted(groups.items()):
        shown = f"{f'{load} {order} {system}':38}"
        for name in names:
            shown += f"{median_of(row[name]) if name in row else '':>27}"
        lines.append(shown)
    return "\n".join(lines)


def median_of(cells: list[dict[str, Any]]) -> str:
    ratio = "/".join(
        f"{median(each['ratio'][name] for each in cells):.2f}" for name in ("mean", *PERCENTILES)
    )
    failed = median(each["failed_percent"] for each in cells)
    return f"{ratio} {failed:.1f}% ({len(cells)})"


def recorded() -> dict[str, Any]:
    if not RESULTS.exists():
        return {"cells": {}}
    return json.loads(RESULTS.read_text("utf-8"))


def record(cells: dict[str, dict[str, Any]]) -> None:
    """Cells that were run before stay, unless they were run again."""
    known = recorded()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    known["machine"] = {
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
    }
    known["cells"] |= {
        key: cell | {"measured_at": now, "machine_load": round(os.getloadavg()[0], 2)}
        for key, cell in cells.items()
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", "utf-8")


def batches(contenders: Sequence[Contender], at_once: int) -> list[Sequence[Contender]]:
    """Who runs side by side: nobody beside those that would slow the others."""
    light = [each for each in contenders if each.system not in HEAVY_SYSTEMS]
    heavy = [each for each in contenders if each.system in HEAVY_SYSTEMS]
    parts = [light[first : first + at_once] for first in range(0, len(light), at_once)]
    return [*parts, *([each] for each in heavy)]


async def run(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    cells: dict[str, dict[str, Any]] = {}
    contenders = [Contender(system, Instances(len(SPEEDS))) for system in given.systems]
    try:
        for load, scenario, order, seed in product(
            given.load, given.scenarios, given.order, given.seeds
        ):
            this = Round(SCENARIOS[scenario], load, order, seed, given.time_scale)
            here = [each for each in contenders if not each.missing]
            for batch in batches(here, given.at_once):
                found = await run_round(this, batch)
                cells |= found
                if given.record:
                    record(found)
    finally:
        for contender in contenders:
            await contender.instances.close()
    for contender in contenders:
        if contender.missing:
            print(f"skipped {contender.system}: {contender.missing}")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--load", nargs="+", type=float, default=[0.7])
    parser.add_argument("--order", nargs="+", choices=("ranked", "shuffled"), default=["ranked"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--time-scale", type=float, default=1.0)
    parser.add_argument("--at-once", type=int, default=5, help="contenders side by side")
    parser.add_argument("--record", action="store_true", help=f"into {RESULTS.relative_to(ROOT)}")
    parser.add_argument("--show", action="store_true", help="the recorded cells, and run nothing")
    given = parser.parse_args()
    print(table(recorded()["cells"] if given.show else asyncio.run(run(given))))


if __name__ == "__main__":
    main()
