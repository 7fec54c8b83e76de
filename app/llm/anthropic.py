"""Anthropic's Messages API by the SDK `anthropic`.

A stream counts as complete only when `message_stop` came: the connection may end without it.
"""

from collections.abc import AsyncGenerator, Sequence

import anthropic
import httpx2
from anthropic.types import MessageDeltaUsage, MessageParam, Usage

from app.language_models import ProviderSpec
from app.llm.base import Completion, GenerationOptions, Message, TextDelta
from app.llm.hosted import NOT_A_PROTOCOL, Fault, fault_of_status, storable

MODELS_LISTED = 100

REASONS = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length"}
"""In the words of the other models; any other reason keeps its own."""


class AnthropicWire:
    """Implements Wire."""

    def __init__(self, spec: ProviderSpec, key: str, connect_timeout_seconds: float) -> None:
        self._key = key
        # No timeout for reading, no retries, no redirects: as in openai_compatible.py.
        self._client = anthropic.AsyncAnthropic(
            api_key=key,
            base_url=spec.url,
            max_retries=0,
            http_client=httpx2.AsyncClient(
                timeout=httpx2.Timeout(None, connect=connect_timeout_seconds),
                follow_redirects=False,
            ),
        )

    async def chat(
        self, model: str, messages: Sequence[Message], options: GenerationOptions, *, thinks: bool
    ) -> AsyncGenerator[TextDelta | Completion]:
        """See Wire. Its models take no temperature any more."""
        completion = Completion(model, "", 0, 0)
        is_complete = False
        try:
            stream = await self._client.messages.create(
                model=model,
                max_tokens=options.max_tokens,
                system="\n\n".join(one.content for one in messages if one.role == "system"),
                messages=_turns(messages),
                stream=True,
            )
            async with stream:
                async for event in stream:
                    match event.type:
                        case "message_start":
                            completion = _counted(
                                event.message.model, "", event.message.usage, completion
                            )
                        case "content_block_delta":
                            delta = event.delta
                            # Thoughts are a sign of life and nothing else.
                            text = delta.text if delta.type == "text_delta" else ""
                            yield TextDelta(storable(text))
                        case "message_delta":
                            reason = event.delta.stop_reason or ""
                            completion = _counted(
                                completion.model,
                                REASONS.get(reason, reason),
                                event.usage,
                                completion,
                            )
                        case "message_stop":
                            is_complete = True
                        case _:
                            pass
        except (anthropic.AnthropicError, httpx2.HTTPError, *NOT_A_PROTOCOL) as error:
            raise self._fault(error, model) from None
        if not is_complete:
            raise Fault("cut", "The model's answer ended before it was complete.")
        yield completion

    async def models(self) -> list[str]:
        """See Wire; at most MODELS_LISTED."""
        try:
            page = await self._client.models.list(limit=MODELS_LISTED)
        except (anthropic.AnthropicError, httpx2.HTTPError, *NOT_A_PROTOCOL) as error:
            raise self._fault(error, "") from None
        return sorted(one.id for one in page.data)

    async def close(self) -> None:
        await self._client.close()

    def _fault(self, error: Exception, model: str) -> Fault:
        match error:
            case anthropic.APIStatusError():
                # An error event in mid-stream comes with the status 200 of its reply.
                status = 500 if error.status_code == 200 else error.status_code
                said = error.api_message or ""
                return fault_of_status(status, said, model=model, key=self._key)
            case anthropic.APIConnectionError():
                return Fault("unreachable", "The connection to it failed.", is_transient=True)
            case httpx2.HTTPError():
                return Fault("cut", "The connection to it broke.", is_transient=True)
            case _:
                return Fault("garbage", "It sent something that is not Anthropic's protocol.")


def _turns(messages: Sequence[Message]) -> list[MessageParam]:
    """The conversation; what the system says has a place of its own."""
    turns: list[MessageParam] = []
    for one in messages:
        match one.role:
            case "user":
                turns.append({"role": "user", "content": one.content})
            case "assistant":
                turns.append({"role": "assistant", "content": one.content})
            case "system":
                pass
    return turns


def _counted(
    model: str, reason: str, usage: Usage | MessageDeltaUsage, before: Completion
) -> Completion:
    """Anthropic counts the cached part of a prompt beside the rest, and counts cumulatively."""
    cached = usage.cache_read_input_tokens or 0
    prompt = (usage.input_tokens or 0) + (usage.cache_creation_input_tokens or 0) + cached
    return Completion(
        model=model,
        reason=reason,
        prompt_tokens=prompt or before.prompt_tokens,
        completion_tokens=usage.output_tokens,
        cached_tokens=cached or before.cached_tokens,
    )
