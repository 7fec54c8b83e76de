"""What Footnote asks of a language model. Adapters stand beside this file."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Message:
    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """Sampling. The same everywhere, because a changed context length reloads an Ollama model."""

    temperature: float = 0.0
    max_tokens: int = 512
    context_tokens: int = 4096
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TextDelta:
    text: str


@dataclass(frozen=True, slots=True)
class Completion:
    """The last event of every complete stream."""

    model: str
    reason: str
    prompt_tokens: int
    completion_tokens: int
    instance: str = ""


class ChatModel(Protocol):
    @property
    def name(self) -> str: ...

    def stream(
        self, messages: Sequence[Message], options: GenerationOptions
    ) -> AsyncGenerator[TextDelta | Completion]:
        """Text as it comes, then exactly one Completion.

        Raises GenerationUnavailable before the first text, GenerationInterrupted after it.
        Closing the iterator ends the request upstream.
        """
        ...


@dataclass(frozen=True, slots=True)
class InstanceHealth:
    """What is known of one server; `reason` says in words what is wrong, None when nothing is.

    `ejected` servers get no requests until a probe sees them generate again.
    """

    instance: str
    reachable: bool
    has_model: bool
    latency_ms: float | None = None
    reason: str | None = None
    slots: int = 1
    in_flight: int = 0
    ejected: bool = False
