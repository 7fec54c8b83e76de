"""OpenAI's protocol, as OpenAI, Azure, DeepSeek, vLLM and many others speak it, by the SDK `openai`.

A stream counts as complete only when a finish reason came: the connection may end without one.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import httpx2
import openai
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam
from openai.types.completion_usage import CompletionUsage

from app.language_models import ProviderSpec
from app.llm.base import Completion, GenerationOptions, Message, TextDelta
from app.llm.hosted import NOT_A_PROTOCOL, Fault, fault_of_status, storable
from app.llm.token_estimate import estimate_tokens

NO_KEY = "none"
"""What a server of one's own is sent that asks for no key."""


class OpenAIWire:
    """Implements Wire."""

    def __init__(self, spec: ProviderSpec, key: str | None, connect_timeout_seconds: float) -> None:
        self._kind = spec.kind
        self._key = key
        # Reading has no timeout here: deadlines count signs of life. Retries are ours, because
        # the SDK would wait as long as the provider says. A redirect could lead the key elsewhere,
        # and a proxy meant for the internet must not stand before a server of one's own.
        http = httpx2.AsyncClient(
            timeout=httpx2.Timeout(None, connect=connect_timeout_seconds),
            follow_redirects=False,
            trust_env=not spec.local,
        )
        options: dict[str, Any] = {
            "api_key": key or NO_KEY,
            "max_retries": 0,
            "http_client": http,
        }
        if spec.kind == "azure":
            self._client: openai.AsyncOpenAI = openai.AsyncAzureOpenAI(
                azure_endpoint=spec.url, api_version=spec.api_version, **options
            )
        else:
            self._client = openai.AsyncOpenAI(base_url=spec.url, **options)

    async def chat(
        self, model: str, messages: Sequence[Message], options: GenerationOptions, *, thinks: bool
    ) -> AsyncGenerator[TextDelta | Completion]:
        """See Wire."""
        written: list[str] = []
        reason: str | None = None
        usage: CompletionUsage | None = None
        answered_by, has_begun = model, False
        try:
            stream = await self._client.chat.completions.create(
                model=model,
                messages=[_message(one) for one in messages],
                stream=True,
                stream_options={"include_usage": True},
                **self._sampling(options, thinks=thinks),
            )
            has_begun = True
            async with stream:
                async for chunk in stream:
                    answered_by = chunk.model or answered_by
                    usage = chunk.usage or usage
                    text, ended = _content(chunk)
                    reason = ended or reason
                    written.append(text)
                    yield TextDelta(text)
        except (openai.OpenAIError, httpx2.HTTPError, *NOT_A_PROTOCOL) as error:
            raise self._fault(error, model, has_begun=has_begun) from None
        if reason is None:
            raise Fault("cut", "The model's answer ended before it was complete.")
        yield _completion(answered_by, reason, usage, messages, "".join(written))

    async def models(self) -> list[str]:
        """See Wire. Azure lists what could be deployed, not what is."""
        try:
            page = await self._client.models.list()
        except (openai.OpenAIError, httpx2.HTTPError, *NOT_A_PROTOCOL) as error:
            raise self._fault(error, "") from None
        return sorted(one.id for one in page.data)

    async def close(self) -> None:
        await self._client.close()

    def _sampling(self, options: GenerationOptions, *, thinks: bool) -> dict[str, Any]:
        """Providers differ in the name of the limit, and thinking models refuse a temperature."""
        modern = self._kind in ("openai", "azure")
        limit = "max_completion_tokens" if modern else "max_tokens"
        sampling: dict[str, Any] = {limit: options.max_tokens}
        if not thinks:
            sampling["temperature"] = options.temperature
        return sampling

    def _fault(self, error: Exception, model: str, *, has_begun: bool = False) -> Fault:
        match error:
            case openai.APIStatusError():
                return fault_of_status(error.status_code, error.message, model=model, key=self._key)
            case openai.APIConnectionError() if not has_begun:
                return Fault("unreachable", "The connection to it failed.", is_transient=True)
            case openai.APIConnectionError() | httpx2.HTTPError():
                return Fault("cut", "The connection to it broke.", is_transient=True)
            case openai.APIError():
                return fault_of_status(500, error.message, model=model, key=self._key)
            case _:
                return Fault("garbage", "It sent something that is not OpenAI's protocol.")


def _message(message: Message) -> ChatCompletionMessageParam:
    match message.role:
        case "system":
            return {"role": "system", "content": message.content}
        case "user":
            return {"role": "user", "content": message.content}
        case "assistant":
            return {"role": "assistant", "content": message.content}


def _content(chunk: ChatCompletionChunk) -> tuple[str, str | None]:
    """The text of a chunk, and why the answer ended if it did; the last chunk has no choice."""
    if not chunk.choices:
        return "", None
    choice = chunk.choices[0]
    return storable(choice.delta.content or ""), choice.finish_reason


def _completion(
    model: str,
    reason: str,
    usage: CompletionUsage | None,
    messages: Sequence[Message],
    written: str,
) -> Completion:
    if usage is None:
        # Not counted is not free: what is used must never look like nothing.
        prompt = "".join(one.content for one in messages)
        return Completion(model, reason, estimate_tokens(prompt), estimate_tokens(written))
    details = usage.prompt_tokens_details
    return Completion(
        model=model,
        reason=reason,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=(details.cached_tokens if details else None) or 0,
    )
