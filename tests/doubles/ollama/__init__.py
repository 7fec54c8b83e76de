"""An Ollama server that behaves like the real one on the wire, in a process of its own.

    python -m tests.doubles.ollama --port 11434 --speed 60 --slots 4

prints its port and that of its control, then serves until it is ended. It keeps to what Ollama
does: no byte before the first token, slots with an unbounded line before them, serial loads, a
reload whenever the context length changes, a prompt's known beginning not read again, `done` on
the last line, and an abort when the client leaves. Behaviour lists what can be switched, faults
included, by `POST /double/faults`; `GET /double/stats` gives what it has seen.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.doubles.ollama.behaviour import Behaviour, Stats

__all__ = ["Behaviour", "OllamaDouble", "Stats", "running_ollama"]

ROOT = Path(__file__).parents[3]


class OllamaDouble:
    """A running double. `set(...)` changes its Behaviour, `stats()` says what it has seen."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        port, control_port = process.stdout.readline().split()
        self.url = f"http://127.0.0.1:{port}"
        self._process = process
        self._control = httpx.Client(
            base_url=f"http://127.0.0.1:{control_port}", trust_env=False, timeout=30
        )

    def set(self, **changes: Any) -> None:
        self._control.post("/double/faults", json=changes).raise_for_status()

    def reset(self) -> None:
        """As it was when it started; nothing may be in flight."""
        self._control.post("/double/reset").raise_for_status()

    def stats(self) -> Stats:
        return Stats(**self._control.get("/double/stats").json())

    def kill(self) -> None:
        """No farewell to anybody, as when a machine loses its power."""
        self._process.kill()
        self._process.wait(10)

    def close(self) -> None:
        self._control.close()
        self._process.terminate()
        self._process.wait(10)
        if self._process.stdout:
            self._process.stdout.close()


@contextmanager
def running_ollama(*arguments: str, **behaviour: Any) -> Iterator[OllamaDouble]:
    """A double in a process; `arguments` are those of its command line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.doubles.ollama", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    double = OllamaDouble(process)
    try:
        double.set(**behaviour)
        yield double
    finally:
        double.close()
