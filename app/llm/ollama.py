"""One Ollama instance over its native API.

Ollama sends no byte, not even the status line, before the first token: waiting, loading and
reading the prompt all look like silence, so one deadline covers them. A stream counts as
complete only when its last line says `done`.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from time import perf_counter
from typing import Any, Literal, cast

import httpx

from app.errors import GenerationInterrupted, GenerationUnavailable
from app.llm.base import (
    Completion,
    Durations,
    GenerationOptions,
    InstanceHealth,
    Message,
    TextDelta,
)
from app.llm.digests import Digests, with_tag

Cause = Literal[
    "unreachable", "silent", "stalled", "cut", "failed", "garbage", "missing", "refused"
]
"""Why an instance did not answer. `missing` (the model) and `refused` (the request) are answers
of a healthy server; everything else is a fault of the instance."""

PROBE_TIMEOUT_SECONDS = 1.0
MAX_LINE_BYTES = 1024 * 1024
MAX_CHARS_PER_TOKEN = 64
MAX_ERROR_CHARS = 300
NANOSECONDS = 1_000_000_000
KEEP_ALIVE_SECONDS = -1
"""For ever: a model that leaves memory while nobody asks would have to be loaded again."""


class InstanceFailed(GenerationUnavailable):
    """The instance gave no text; another one may answer the same request."""

    def __init__(self, cause: Cause, detail: str, *, hint: str | None = None) -> None:
        super().__init__(detail, hint=hint)
        self.cause: Cause = cause


class InstanceBroke(GenerationInterrupted):
    """The instance stopped after its first text."""

    def __init__(self, cause: Cause, detail: str) -> None:
        super().__init__(detail)
        self.cause: Cause = cause


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server may be silent: before the first token, and between two."""

    first_token_seconds: float
    stall_seconds: float


class OllamaInstance:
    """One server with any number of models.

    `address` is the server's URL without credentials: the name under which people see it.
    """

    def __init__(self, url: str, *, connect_timeout_seconds: float) -> None:
        self.address = without_credentials(url)
        # Reading has no timeout here, because the deadlines below count tokens, not bytes.
        # A proxy meant for the internet must not stand before a server of one's own.
        self._client = httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(None, connect=connect_timeout_seconds),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=8),
            trust_env=False,
        )

    async def stream(
        self,
        model: str,
        messages: Sequence[Message],
        options: GenerationOptions,
        patience: Patience,
    ) -> AsyncGenerator[TextDelta | Completion]:
        """Text as it comes, then one Completion; see ChatModel.

        Raises InstanceFailed before the first text and InstanceBroke after it. Closing the
        iterator closes the connection, which ends the work upstream.
        """
        has_text = False
        try:
            async with aclosing(self._events(model, messages, options, patience)) as events:
                async for event in events:
                    yield event
                    has_text = True
        except _Fault as fault:
            if has_text:
                raise InstanceBroke(fault.cause, fault.detail) from None
            raise InstanceFailed(fault.cause, fault.detail, hint=fault.hint) from None

    async def resident_models(self) -> frozenset[str]:
        """The models in memory, with their tags; raises InstanceFailed when it does not say."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
                return await self._names("/api/ps")
        except (httpx.HTTPError, TimeoutError):
            raise InstanceFailed("unreachable", "The model server gives no reply.") from None
        except (ValueError, TypeError, KeyError):
            raise InstanceFailed("garbage", "The reply is not Ollama's.") from None

    async def health(self, model: str, *, timeout_seconds: float) -> InstanceHealth:
        """Whether the server answers, and which models it has and has loaded."""
        started = perf_counter()
        try:
            async with asyncio.timeout(timeout_seconds):
                version, models, resident = await asyncio.gather(
                    self._version(), self._names("/api/tags"), self._names("/api/ps")
                )
        except (httpx.HTTPError, TimeoutError):
            return InstanceHealth(self.address, reachable=False, has_model=False, reason="no reply")
        except (ValueError, TypeError, KeyError):
            reason = "the reply is not Ollama's"
            return InstanceHealth(self.address, reachable=False, has_model=False, reason=reason)
        has_model = with_tag(model) in models
        return InstanceHealth(
            self.address,
            reachable=True,
            has_model=has_model,
            latency_ms=(perf_counter() - started) * 1000,
            reason=None if has_model else f"the model {model} is missing",
            version=version,
            models=tuple(sorted(models)),
            resident_models=tuple(sorted(resident)),
        )

    async def digests(self) -> Digests:
        """Of all models that the server has now; empty where it does not tell within a second."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
                response = await self._client.get("/api/tags")
            response.raise_for_status()
            models = response.json()["models"]
            return {str(each["name"]): str(each["digest"]) for each in models}
        except (httpx.HTTPError, TimeoutError, ValueError, TypeError, KeyError):
            return {}

    async def close(self) -> None:
        await self._client.aclose()

    async def _version(self) -> str:
        response = await self._client.get("/api/version")
        response.raise_for_status()
        return str(response.json()["version"])

    async def _names(self, path: str) -> frozenset[str]:
        response = await self._client.get(path)
        response.raise_for_status()
        return frozenset(str(each["name"]) for each in response.json()["models"])

    async def _events(
        self,
        model: str,
        messages: Sequence[Message],
        options: GenerationOptions,
        patience: Patience,
    ) -> AsyncGenerator[TextDelta | Completion]:
        """Text that is not empty, then one Completion; raises _Fault."""
        request = self._client.build_request(
            "POST", "/api/chat", json=_body(model, messages, options)
        )
        chars_left = options.max_tokens * MAX_CHARS_PER_TOKEN
        clock = asyncio.get_running_loop().time
        deadline = clock() + patience.first_token_seconds
        silence: Cause = "silent"
        response: httpx.Response | None = None
        try:
            async with asyncio.timeout_at(deadline):
                response = await self._client.send(request, stream=True)
                if response.status_code != HTTPStatus.OK:
                    raise _refusal(model, response.status_code, await response.aread())
            async with aclosing(_lines(response)) as lines:
                while True:
                    async with asyncio.timeout_at(deadline):
                        line = await anext(lines, None)
                    if line is None:
                        raise _Fault("cut", "The model's answer ended before it was complete.")
                    event = self._event(model, line)
                    if isinstance(event, Completion):
                        yield event
                        return
                    if event.text:
                        chars_left -= len(event.text)
                        if chars_left < 0:
                            raise _Fault("garbage", "The model sent more than it was asked for.")
                        yield event
                    # Set after the reader took the event: its slowness is not the instance's.
                    deadline = clock() + patience.stall_seconds
                    silence = "stalled"
        except TimeoutError:
            raise _Fault(silence, "The model sent nothing for too long.") from None
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise _Fault("unreachable", "The model server cannot be reached.") from None
        except httpx.HTTPError:
            raise _Fault("cut", "The connection to the model server broke.") from None
        finally:
            if response is not None:
                await response.aclose()

    def _event(self, model: str, line: bytes) -> TextDelta | Completion:
        event = _json_object(line)
        if "error" in event:
            raise _Fault("failed", f"The model failed: {str(event['error'])[:MAX_ERROR_CHARS]}")
        if event.get("done") is True:
            return Completion(
                model=str(event.get("model") or model),
                reason=str(event.get("done_reason") or "stop"),
                prompt_tokens=_count(event.get("prompt_eval_count")),
                completion_tokens=_count(event.get("eval_count")),
                instance=self.address,
                durations=_durations(event),
            )
        message = event.get("message")
        content = (
            cast("dict[str, Any]", message).get("content", "")
            if isinstance(message, dict)
            else None
        )
        if not isinstance(content, str):
            raise _garbage()
        return TextDelta(_storable(content))


class _Fault(Exception):
    """What went wrong, before it is known whether the reader already has some text."""

    def __init__(self, cause: Cause, detail: str, *, hint: str | None = None) -> None:
        super().__init__(detail)
        self.cause: Cause = cause
        self.detail = detail
        self.hint = hint


def _body(model: str, messages: Sequence[Message], options: GenerationOptions) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": each.role, "content": each.content} for each in messages],
        "stream": True,
        "keep_alive": KEEP_ALIVE_SECONDS,
        # Thinking would spend the token budget on text that nobody sees.
        "think": False,
        # The same from everywhere: another context length would reload the model.
        "options": {
            "num_ctx": options.context_tokens,
            "num_predict": options.max_tokens,
            "temperature": options.temperature,
            "seed": options.seed,
        },
    }


def _refusal(model: str, status: int, body: bytes) -> _Fault:
    try:
        said = str(_json_object(body)["error"])[:MAX_ERROR_CHARS]
    except (_Fault, KeyError):
        return _Fault("failed", f"The model server answered with status {status}.")
    if status == HTTPStatus.NOT_FOUND:
        return _Fault(
            "missing",
            f"The model server does not have the model {model}.",
            hint=f"On the model server run `ollama pull {model}`.",
        )
    cause: Cause = "refused" if status == HTTPStatus.BAD_REQUEST else "failed"
    return _Fault(cause, f"The model server answered with status {status}: {said}")


def _garbage() -> _Fault:
    return _Fault("garbage", "The model server sent something that is not Ollama's protocol.")


async def _lines(response: httpx.Response) -> AsyncGenerator[bytes]:
    """The lines of the body that are not empty.

    They are split as bytes, so that a character cut in two by the network is whole again before
    it is decoded.
    """
    unfinished = b""
    async for received in response.aiter_bytes():
        *whole, unfinished = (unfinished + received).split(b"\n")
        if len(unfinished) > MAX_LINE_BYTES:
            raise _garbage()
        for line in whole:
            if line.strip():
                yield line
    if unfinished.strip():
        yield unfinished


def _json_object(content: bytes) -> dict[str, Any]:
    try:
        loaded: object = json.loads(content)
    except (ValueError, RecursionError):
        raise _garbage() from None
    if not isinstance(loaded, dict):
        raise _garbage()
    return cast("dict[str, Any]", loaded)


def _storable(text: str) -> str:
    """Without NUL and lone surrogates, which neither UTF-8 nor the database can hold."""
    if text.isascii():
        return text.replace("\0", "")
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")


def _durations(event: dict[str, Any]) -> Durations:
    def seconds(name: str) -> float:
        return _count(event.get(name)) / NANOSECONDS

    return Durations(
        total_seconds=seconds("total_duration"),
        load_seconds=seconds("load_duration"),
        prompt_seconds=seconds("prompt_eval_duration"),
        completion_seconds=seconds("eval_duration"),
    )


def _count(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def without_credentials(url: str) -> str:
    parsed = httpx.URL(url)
    return str(parsed.copy_with(username=None, password=None)).rstrip("/")
