"""The instances of one contender of benchmarks/pool.py: eight processes of the double."""

import asyncio
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from benchmarks.pool_systems import request_body
from benchmarks.pool_trace import Machine
from tests.doubles.ollama import Behaviour

ROOT = Path(__file__).resolve().parent.parent


class Instances:
    def __init__(self, count: int) -> None:
        self._processes = [self._begun(0, 0) for _ in range(count)]
        self._ports = [ports_of(process) for process in self._processes]
        self._client = httpx.AsyncClient(trust_env=False, timeout=30)
        self.most_in_flight = [0] * count
        self.late_seconds = 0.0
        self.tokens = 0

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(f"http://127.0.0.1:{port}" for port, _ in self._ports)

    async def prepare(self, machines: list[Machine], scale: float, cold: set[int]) -> None:
        """As if just started, with the model in memory of all but the cold ones."""
        self.most_in_flight = [0] * len(machines)
        self.late_seconds, self.tokens = 0.0, 0
        await asyncio.gather(
            *(
                self._prepare(place, machine.behaviour(scale), is_loaded=place not in cold)
                for place, machine in enumerate(machines)
            )
        )

    async def _prepare(self, place: int, behaviour: Behaviour, *, is_loaded: bool) -> None:
        for _ in range(100):
            if not (await self.stats(place))["in_flight"]:
                break
            await asyncio.sleep(0.1)
        await self._control(place, "/double/reset")
        changes = asdict(behaviour)
        if is_loaded:
            await self._control(place, "/double/faults", changes | {"load_seconds": 0.0})
            preload = request_body("") | {"messages": [], "keep_alive": -1}
            reply = await self._client.post(f"{self.urls[place]}/api/chat", json=preload)
            reply.raise_for_status()
        await self._control(place, "/double/faults", changes)

    async def switch(self, place: int, changes: dict[str, Any]) -> None:
        await self._control(place, "/double/faults", changes)

    async def kill(self, place: int) -> None:
        await self.count(place)
        self._processes[place].kill()
        await asyncio.to_thread(self._processes[place].wait)

    async def start_again(self, place: int, behaviour: Behaviour) -> None:
        """On its old ports, with the model in memory."""
        process = self._begun(*self._ports[place])
        await asyncio.to_thread(ports_of, process)
        self._processes[place] = process
        await self._prepare(place, behaviour, is_loaded=True)

    async def count(self, place: int) -> dict[str, Any]:
        """What it has seen so far, added to what it had seen before it was killed."""
        stats = await self.stats(place)
        self.most_in_flight[place] = max(self.most_in_flight[place], stats["most_in_flight"])
        self.late_seconds += stats["late_seconds"]
        self.tokens += stats["tokens"]
        return stats

    async def stats(self, place: int) -> dict[str, Any]:
        reply = await self._client.get(self._control_url(place) + "/double/stats")
        return reply.json()

    async def close(self) -> None:
        await self._client.aclose()
        for process in self._processes:
            process.terminate()
            process.wait()

    def _begun(self, port: int, control_port: int) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.doubles.ollama"),
                *("--port", str(port), "--control-port", str(control_port)),
            ],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def _control_url(self, place: int) -> str:
        return f"http://127.0.0.1:{self._ports[place][1]}"

    async def _control(self, place: int, path: str, body: dict[str, Any] | None = None) -> None:
        reply = await self._client.post(self._control_url(place) + path, json=body or {})
        reply.raise_for_status()


def ports_of(process: "subprocess.Popen[str]") -> tuple[int, int]:
    """Its port and its control's, once it listens."""
    assert process.stdout is not None
    port, control_port = process.stdout.readline().split()
    return int(port), int(control_port)
