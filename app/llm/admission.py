"""Who is let into the line before the model servers, and what the others are told."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

from app.errors import FootnoteError, GenerationUnavailable, Overloaded, RateLimited
from app.llm.base import Admission, GenerationOptions, Message
from app.llm.dispatch import Dispatcher, Request
from app.llm.habits import Habits
from app.llm.lanes import OwnerLimits
from app.llm.members import Member
from app.llm.ollama import InstanceFailed
from app.llm.statistics import PoolTally, Shed
from app.telemetry import GENERATION_SHED

MAX_RETRY_AFTER_SECONDS = 60


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """What a request may wait for, how many may wait, and what one owner may have at once.

    `batch_timeout_seconds` is the patience of the batch lane. An owner's limits are off at zero.
    """

    queue_size: int = 64
    queue_timeout_seconds: float = 30.0
    batch_timeout_seconds: float = 300.0
    connect_timeout_seconds: float = 2.0
    first_token_timeout_seconds: float = 120.0
    stall_timeout_seconds: float = 60.0
    owner_concurrency: int = 0
    owner_tokens_per_minute: int = 0


class Gate:
    """Makes requests, and refuses at once what the limits or the expected wait do not allow."""

    def __init__(
        self,
        limits: PoolLimits,
        members: Sequence[Member],
        habits: Habits,
        tally: PoolTally,
        clock: Callable[[], float],
    ) -> None:
        self._limits = limits
        self._members = members
        self._habits = habits
        self._tally = tally
        self._clock = clock
        self.owners = OwnerLimits(
            concurrency=limits.owner_concurrency,
            tokens_per_minute=limits.owner_tokens_per_minute,
        )

    def request(
        self,
        model: str,
        messages: Sequence[Message],
        options: GenerationOptions,
        admission: Admission,
    ) -> Request:
        now = self._clock()
        is_batch = admission.lane == "batch"
        longest_seconds = (
            self._limits.batch_timeout_seconds if is_batch else self._limits.queue_timeout_seconds
        )
        if admission.wait_seconds is not None:
            longest_seconds = min(longest_seconds, admission.wait_seconds)
        prompt, expected_tokens = self._habits.expect(model, messages, options.max_tokens)
        return Request(
            model,
            prompt,
            expected_tokens,
            admission,
            arrived_at=now,
            deadline_at=now + longest_seconds,
        )

    def admit(self, request: Request, dispatcher: Dispatcher) -> None:
        """Raises what the request is refused with, at once."""
        owner = request.admission.owner
        if not self.owners.has_room(owner):
            self._count_shed("owner_limit")
            raise RateLimited(
                f"This key has {self.owners.concurrency} questions under way already.",
                retry_after_seconds=ceil(dispatcher.wait_seconds(request)) or 1,
            )
        seconds = self.owners.seconds_until_tokens(owner, request.arrived_at)
        if seconds:
            self._count_shed("owner_limit")
            raise RateLimited(
                "This key has used its tokens of this minute.", retry_after_seconds=ceil(seconds)
            )
        if not dispatcher.usable(request):
            raise self.unavailable(request)
        if dispatcher.is_free_for(request):
            return
        wait_seconds = dispatcher.wait_seconds(request)
        if len(dispatcher.lanes) >= self._limits.queue_size:
            raise self.overloaded(
                "queue_full", "Every model server is busy and the queue is full.", wait_seconds
            )
        longest_seconds = request.deadline_at - request.arrived_at
        if wait_seconds > longest_seconds and self._habits.knows(request.model):
            raise self.overloaded(
                "wait_too_long",
                f"A model server is expected to be free in {wait_seconds:.0f} seconds only; "
                f"the request waits for {longest_seconds:g}.",
                wait_seconds,
            )

    def overloaded(self, why: Shed, detail: str, wait_seconds: float) -> Overloaded:
        self._count_shed(why)
        return Overloaded(
            detail,
            retry_after_seconds=min(MAX_RETRY_AFTER_SECONDS, max(1, ceil(wait_seconds))),
        )

    def _count_shed(self, why: Shed) -> None:
        self._tally.shed[why] += 1
        GENERATION_SHED.labels(why).inc()

    def unavailable(self, request: Request, last: InstanceFailed | None = None) -> FootnoteError:
        """Why no instance is left for a request, and when to come again."""
        now = self._clock()
        serving = [one for one in self._members if not one.is_draining]
        if serving and all(one.served(request.model).missing_until > now for one in serving):
            return GenerationUnavailable(
                f"No model server has the model {request.model}.",
                hint=f"On the model server run `ollama pull {request.model}`.",
            )
        probes_at = [one.next_probe_at for one in serving if one.breaker.is_open]
        all_out = bool(probes_at) and len(probes_at) == len(serving)
        return GenerationUnavailable(
            last.detail if last else "Every model server that could answer has failed repeatedly.",
            hint=last.hint if last else None,
            retry_after_seconds=max(1, ceil(min(probes_at) - now)) if all_out else 1,
        )
