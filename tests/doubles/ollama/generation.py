"""One request for text, from its prompt to the lines of its answer."""

import asyncio
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import perf_counter
from typing import Any, Literal

from tests.doubles.ollama.behaviour import Behaviour, Fault
from tests.doubles.ollama.http import Connection

CRASHED = "llama runner process has terminated: exit status 2"

TOKEN = re.compile(r"\s*\S+")
SCRIPT = re.compile(r"\[write (\d+) tokens as (\w+)\]")
SOURCE = re.compile(r'<source id="(\d+)"[^>]*>\n(.*?)\n</source>', re.DOTALL)
COUNT = re.compile(r"(\d+): count ")
COUNTED = 100
FIRST_SENTENCE = re.compile(r"[^.!?]*[.!?]", re.DOTALL)


class Failure(Exception):
    """`{"error": …}` with a status."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status = status
        self.error = error


@dataclass
class Generation:
    """`kind` decides only where the text stands; `behaviour` is that of the time it was asked."""

    kind: Literal["chat", "generate"]
    request: dict[str, Any]
    model: str
    fault: Fault | None
    behaviour: Behaviour
    connection: Connection
    started: float = field(default_factory=perf_counter)
    load_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    has_begun: bool = False

    def __post_init__(self) -> None:
        """`asks` holds the texts of the prompt; without any, the model is only loaded."""
        if self.kind == "chat":
            self.asks = [each.get("content", "") for each in self.request.get("messages") or []]
        else:
            self.asks = [
                self.request[name] for name in ("system", "prompt") if self.request.get(name)
            ]
        self.prompt = TOKEN.findall("\n".join(self.asks))

    @property
    def options(self) -> dict[str, Any]:
        return self.request.get("options") or {}

    @property
    def streams(self) -> bool:
        return self.request.get("stream") is not False

    # --- what is written -------------------------------------------------------------------------

    def parts(self) -> tuple[list[str], list[str], str]:
        """Tokens that are thought, tokens of the answer, and why it ends."""
        thinks = self.request.get("think") is not False
        thoughts = TOKEN.findall(self.behaviour.thoughts) if thinks else []
        tokens = self._tokens()
        limit = int(self.options.get("num_predict") or -1)
        if 0 < limit < len(thoughts) + len(tokens):
            thoughts = thoughts[:limit]
            return thoughts, tokens[: limit - len(thoughts)], "length"
        return thoughts, tokens, self.behaviour.done_reason

    def _tokens(self) -> list[str]:
        if script := SCRIPT.search(self.asks[-1]):
            count, name = int(script.group(1)), script.group(2)
            return [f"{' ' if number > 1 else ''}{name}.{number}" for number in range(1, count + 1)]
        return TOKEN.findall(self._text())

    def _text(self) -> str:
        behaviour = self.behaviour
        if behaviour.answer is not None:
            return behaviour.answer
        quotes: list[str] = []
        for marker, text in SOURCE.findall(self.asks[-1])[: behaviour.quoted_sources]:
            found = FIRST_SENTENCE.search(text)
            quotes.append(f"{found.group().strip() if found else text.strip()} [{marker}]")
        if behaviour.invented_marker is not None:
            quotes.append(f"And this is well known [{behaviour.invented_marker}].")
        if not quotes and (counted := COUNT.match(self.asks[-1])):
            quotes = [str(int(counted[1]) + number) for number in range(COUNTED)]
        return " ".join(quotes) or "Hello."

    # --- how it is written -----------------------------------------------------------------------

    def line(self, text: str, *, thinking: bool = False) -> dict[str, Any]:
        line: dict[str, Any] = {"model": self.model, "created_at": now()}
        thought = {"thinking": text} if thinking else {}
        text = "" if thinking else text
        if self.kind == "chat":
            line["message"] = {"role": "assistant", "content": text} | thought
        else:
            line |= {"response": text} | thought
        return line | {"done": False}

    def last_line(self, reason: str, *, count: int = 0, text: str = "") -> dict[str, Any]:
        """Durations are in nanoseconds, and what is zero is left out."""
        figures = {
            "total_duration": nanoseconds(perf_counter() - self.started),
            "load_duration": nanoseconds(self.load_seconds),
            "prompt_eval_count": len(self.prompt),
            "prompt_eval_duration": nanoseconds(self.prefill_seconds),
            "eval_count": count,
            "eval_duration": nanoseconds(self.decode_seconds),
        }
        known = {name: value for name, value in figures.items() if value}
        return self.line(text) | {"done": True, "done_reason": reason} | known

    async def send_line(self, line: dict[str, Any]) -> None:
        if not self.streams:
            self.connection.send_json(200, line)
            return
        if not self.has_begun:
            self.has_begun = True
            self.connection.start_stream()
        content = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        size = self.behaviour.piece_bytes or len(content)
        for at in range(0, len(content), size):
            await self.connection.send_piece(content[at : at + size])
            if size < len(content):
                await asyncio.sleep(0)  # so that each piece is a packet of its own

    async def end(self, last_line: dict[str, Any]) -> None:
        await self.send_line(last_line)
        if self.streams:
            self.connection.end_stream()

    async def strike(self) -> None:
        """The fault, here and now."""
        if self.fault == "hang":
            await asyncio.Event().wait()
        elif self.fault == "cut":
            self.connection.cut()
        elif not self.streams:
            raise Failure(500, CRASHED)
        elif self.fault == "error_line":
            await self.end({"error": "an error was encountered while running the model"})
        else:
            if not self.has_begun:
                self.connection.start_stream()
            if self.fault == "garbage":
                await self.connection.send_piece(b"<html>upstream is sad</html>\n")
            self.connection.end_stream()


def nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
