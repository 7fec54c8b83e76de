"""What Footnote asks of a language model. Adapters stand beside this file."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, Protocol

from app.costs.prices import Payer

Lane = Literal["interactive", "batch"]
"""Somebody waits for it, or nobody does: interactive requests go before batch ones."""


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
class Admission:
    """How a request stands in line, and who pays for it.

    `wait_seconds` is the longest that it may wait for a server, None for the service's own limit.
    `owner` is whom limits are counted for, such as the id of an API key; empty for nobody. What
    costs money is refused without a `payer`.
    """

    lane: Lane = "interactive"
    wait_seconds: float | None = None
    owner: str = ""
    payer: Payer | None = None


UNHURRIED = Admission()
"""How a request stands in line that says nothing about it."""


@dataclass(frozen=True, slots=True)
class Queued:
    """Every server is busy: `position` in the line, from 1, and the wait that is expected.

    May come any number of times before the first text, and never after it.
    """

    position: int
    wait_seconds: float


@dataclass(frozen=True, slots=True)
class TextDelta:
    text: str


@dataclass(frozen=True, slots=True)
class Durations:
    """What the server says of its own work; zero where it says nothing.

    `total_seconds` less the others is what the request waited inside the server, unseen.
    """

    total_seconds: float = 0.0
    load_seconds: float = 0.0
    prompt_seconds: float = 0.0
    completion_seconds: float = 0.0

    @property
    def hidden_wait_seconds(self) -> float:
        worked = self.load_seconds + self.prompt_seconds + self.completion_seconds
        return max(0.0, self.total_seconds - worked)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A model that did not answer, and why in words."""

    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class Completion:
    """The last event of every complete stream.

    `prompt_tokens` includes `cached_tokens`: those that the server had read before, as far as it
    says so or its speed shows it. `cost` is added by whoever meters the model.
    """

    model: str
    reason: str
    prompt_tokens: int
    completion_tokens: int
    instance: str = ""
    cached_tokens: int = 0
    durations: Durations = Durations()
    cost: Decimal = Decimal(0)
    tried: tuple[Attempt, ...] = ()
    """Models that were asked before this one and failed."""


GenerationEvent = Queued | TextDelta | Completion


class ChatModel(Protocol):
    @property
    def name(self) -> str: ...

    async def digest(self) -> str | None:
        """What tells the weights that answer now from any others; None while nobody knows.

        A name or a tag does not: it may be given to other weights tomorrow.
        """
        ...

    def stream(
        self,
        messages: Sequence[Message],
        options: GenerationOptions,
        admission: Admission = UNHURRIED,
    ) -> AsyncGenerator[GenerationEvent]:
        """Where it stands in line if it must wait, text as it comes, then exactly one Completion.

        Raises GenerationUnavailable or Overloaded before the first text, GenerationInterrupted
        after it. Closing the iterator ends the request upstream.
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
    version: str | None = None
    models: tuple[str, ...] = ()
    resident_models: tuple[str, ...] = ()
