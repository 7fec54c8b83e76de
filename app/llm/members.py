"""One server of the pool: what it works on, what is known of it, and what a request costs there.

Times are seconds on the pool's clock. Nothing here waits or asks the server.
"""

from asyncio import TimerHandle
from collections import Counter
from dataclasses import dataclass, field

from app.llm.base import Completion, TextDelta
from app.llm.choice import Line
from app.llm.draining import Drain
from app.llm.endpoint_health import Breaker
from app.llm.estimates import OutputLengths
from app.llm.habits import Habits, Prompt
from app.llm.instance_model import MARGIN_SECONDS, P95_DEVIATIONS, P99_DEVIATIONS, InstanceModel
from app.llm.ollama import Cause, InstanceBroke, OllamaInstance, Patience
from app.llm.prefixes import PrefixMemory

STRETCH_TOKENS = 8
STRETCH_SECONDS = 0.3
LEAST_STRETCH_TOKENS = 2
"""Tokens are timed in stretches, because the network delivers them in twos and threes."""

SILENT_TOKENS = 3.0
"""Streams that are all silent for longer than so many tokens take are slower than was learnt."""
SILENT_SECONDS = 0.05

HIDDEN_ANSWERS = 2
"""So many answers of others a request may have to wait for inside a server that is alive."""
HIDDEN_WAIT_SECONDS = 0.3
HIDDEN_WAIT_SHARE = 0.25
"""A wait inside the server that is longer than both shows that it had no slot free."""
WAITS_TO_LOWER = 3
SLOTS_RETRY_SECONDS = 600.0

TRUST_WEIGHT = 0.2
LEAST_TRUST = 0.1
"""Below it nothing would be expected of the cache, and so nothing found in it."""
LEAST_EXPECTED_CACHED = 16
MODEL_MISSING_SECONDS = 30.0
"""How long an instance that lacks the model is asked last."""


AnswerDrain = Drain[TextDelta | Completion]


@dataclass(eq=False, slots=True)
class Work:
    """One request on its server."""

    model: str
    prompt: Prompt
    dispatched_at: float
    expected_first_token_seconds: float
    expected_cached: float
    was_resident: bool
    expected_token_seconds: float
    expected_tokens: float
    started_as: int
    """How many the server worked on when this one came, itself included."""
    tokens: int = 0
    first_token_at: float | None = None
    last_token_at: float = 0.0
    stretch_began_at: float = 0.0
    stretch_tokens: int = 0
    stretch_concurrency: int = 0
    was_timed: bool = False
    has_stalled: bool = False
    """It was silent for so long that its server was suspected; cleared by its next token."""
    has_lease: bool = False
    """Its slot is counted in Redis as well."""
    is_left_behind: bool = False
    """Another attempt has won. It goes on until its server speaks, or has shown that it does not."""
    drain: AnswerDrain | None = None
    watch: TimerHandle | None = None

    @property
    def has_begun(self) -> bool:
        return self.first_token_at is not None

    def predicted_seconds(self, tokens: float) -> float:
        """What was expected at the beginning, of an answer of so many tokens."""
        return self.expected_first_token_seconds + tokens * self.expected_token_seconds


@dataclass(eq=False, slots=True)
class Served:
    """One model on one server."""

    speed: InstanceModel = field(default_factory=InstanceModel)
    prefixes: PrefixMemory = field(default_factory=PrefixMemory)
    cache_trust: float = 0.5
    """Which share of the tokens that should be cached has been found so."""
    is_resident: bool | None = None
    """None: nobody has asked."""
    loading_since: float | None = None
    missing_until: float = 0.0


@dataclass(slots=True)
class Tally:
    """What a server has done since the pool knows it."""

    served: int = 0
    failed: int = 0
    abandoned: int = 0
    loads: int = 0
    ejections: Counter[str] = field(default_factory=Counter[str])
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    hidden_wait_seconds: float = 0.0
    """Of late: an average that the newest answers weigh most in."""


class Member:
    def __init__(self, slots: int, breaker: Breaker, instance: OllamaInstance) -> None:
        self.instance = instance
        self.slots = slots
        self.breaker = breaker
        self.works: set[Work] = set()
        self.probes = 0
        self.is_draining = False
        self.is_removed = False
        self.held_by_others = 0
        self.allowed_slots = slots
        self.tally = Tally()
        self.next_probe_at = 0.0
        self.last_sign_at = float("-inf")
        self.last_fault_tokens = 0
        self.is_unreachable = False
        self.was_silent = False
        """Whether its breaker opened because nothing came."""
        self._served: dict[str, Served] = {}
        self._lowered_to: int | None = None
        self._lowered_at = 0.0
        self._waits = Counter[int]()

    @property
    def address(self) -> str:
        return self.instance.address

    def served(self, model: str) -> Served:
        found = self._served.get(model)
        if found is None:
            found = self._served[model] = Served()
        return found

    @property
    def models(self) -> dict[str, Served]:
        return self._served

    # --- slots -----------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        return len(self.works) + self.probes

    def real_slots(self, now: float) -> int:
        """The configured slots, or fewer where waits inside the server have shown so."""
        if self._lowered_to is None:
            return self.slots
        if now - self._lowered_at >= SLOTS_RETRY_SECONDS:
            self._lowered_at = now
            self._lowered_to += 1
            if self._lowered_to >= self.slots:
                self._lowered_to = None
                return self.slots
        return self._lowered_to

    def usable_slots(self, now: float) -> int:
        """How many requests this process may have here now, those under way included."""
        if self.is_draining:
            return 0
        slots = self.real_slots(now)
        own = min(self.breaker.slots(slots), self.allowed_slots, slots - self.held_by_others)
        return max(0, own)

    def has_free_slot(self, now: float) -> bool:
        return self.in_flight < self.usable_slots(now)

    def is_warm(self, model: str) -> bool:
        """Whether it has the model in memory, and the pool's full trust."""
        return self.breaker.is_trusted and bool(self.served(model).is_resident)

    def line(self, now: float, habits: Habits) -> Line["Member"]:
        """When each usable slot will be free."""
        usable = self.usable_slots(now)
        frees = sorted(
            self._rest_seconds(work, now, habits.lengths(work.model)) for work in self.works
        )
        frees += [0.0] * self.probes
        free = usable - len(frees)
        if free < 0:
            # More is under way than may be: nobody gets in until it has shrunk.
            return Line(self, frees[-free:])
        return Line(self, [0.0] * free + [max(seconds, 0.001) for seconds in frees])

    def give_up_stalled(self, error: InstanceBroke) -> None:
        """End the streams that stand still; those that flow are proof that it is there."""
        for work in list(self.works):
            if work.has_stalled and work.drain is not None:
                work.drain.give_up(error)

    # --- what a request costs --------------------------------------------------------------------

    def expected_cached(self, model: str, prompt: Prompt) -> float:
        served = self.served(model)
        shared = served.prefixes.shared_chars(prompt.beginnings) / max(1, prompt.chars)
        return prompt.tokens * min(1.0, shared) * served.cache_trust

    def first_token_seconds(self, model: str, prompt: Prompt, now: float) -> float:
        """With a slot free: what is left of loading, then the reading of what is not cached."""
        uncached = prompt.tokens - self.expected_cached(model, prompt)
        return self.load_seconds(model, now) + self.served(model).speed.first_token_seconds(
            uncached
        )

    def load_seconds(self, model: str, now: float) -> float:
        served = self.served(model)
        if served.loading_since is not None:
            left = served.speed.load_seconds - (now - served.loading_since)
            return max(left, 0.1 * served.speed.load_seconds)
        return served.speed.load_seconds if served.is_resident is False else 0.0

    def work_seconds(self, model: str, prompt: Prompt, tokens: float, now: float) -> float:
        """From a free slot to the end of an answer of so many tokens."""
        begin_seconds = self.first_token_seconds(model, prompt, now) + self._lateness(now)
        concurrency = min(self.in_flight + 1, max(1, self.slots))
        return begin_seconds + tokens * self._token_seconds(model, concurrency, now)

    def silent_until(self, work: Work, now: float, most: Patience) -> float:
        """When silence becomes a fault: by the learnt speed, `most` while too little is known.

        Nothing is expected of the cache, a load may take what it takes, and a server that goes on
        with other streams, though more slowly, is waited for that much longer: it may also have
        fewer slots than it is said to.
        """
        speed = self.served(work.model).speed
        if work.has_begun:
            # The server is suspected early, but its streams are waited for: they can go nowhere.
            learnt = most.stall_seconds if work.has_stalled else speed.stall_seconds()
            return work.last_token_at + min(most.stall_seconds, learnt)
        first_token = most.first_token_seconds
        reading = speed.first_token_seconds(work.prompt.tokens)
        within = speed.first_token_within(reading, P99_DEVIATIONS)
        if within is not None and work.was_resident:
            slower = speed.token_seconds(self.in_flight) / work.expected_token_seconds
            limit = within * max(1.0, slower) + MARGIN_SECONDS
            if self.last_sign_at > work.dispatched_at:
                limit += HIDDEN_ANSWERS * work.predicted_seconds(work.expected_tokens)
            first_token = min(first_token, limit)
        return work.dispatched_at + first_token

    def hedge_after_seconds(self, work: Work) -> float | None:
        """When a first token is late enough to ask another server as well."""
        served = self.served(work.model)
        if not work.was_resident:
            return None
        within = served.speed.first_token_within(work.expected_first_token_seconds, P95_DEVIATIONS)
        return None if within is None else within + MARGIN_SECONDS / 4

    def _rest_seconds(self, work: Work, now: float, lengths: OutputLengths) -> float:
        concurrency = max(1, len(self.works))
        token_seconds = self._token_seconds(work.model, concurrency, now)
        if work.has_begun:
            return lengths.expected(work.tokens) * token_seconds
        elapsed = now - work.dispatched_at
        until_begun = max(work.expected_first_token_seconds - elapsed, 0.25 * elapsed)
        return until_begun + lengths.expected() * token_seconds

    def _token_seconds(self, model: str, concurrency: float, now: float) -> float:
        usual = self.served(model).speed.token_seconds(concurrency)
        begun = [now - work.last_token_at for work in self.works if work.has_begun]
        silent = min(begun, default=0.0)
        return max(usual, silent) if silent > SILENT_TOKENS * usual + SILENT_SECONDS else usual

    def _lateness(self, now: float) -> float:
        """How long first tokens are overdue while nothing else comes from the server either."""
        late = 0.0
        for work in self.works:
            if not work.has_begun and self.last_sign_at < work.dispatched_at:
                expected = work.expected_first_token_seconds
                late = max(late, now - work.dispatched_at - 2 * expected - MARGIN_SECONDS / 4)
        return late

    # --- what happens ----------------------------------------------------------------------------

    def begin(self, model: str, prompt: Prompt, tokens: float, now: float) -> Work:
        served = self.served(model)
        expected = self.first_token_seconds(model, prompt, now)
        cached = self.expected_cached(model, prompt)
        work = Work(
            model,
            prompt,
            dispatched_at=now,
            expected_first_token_seconds=expected,
            expected_cached=cached,
            expected_token_seconds=served.speed.token_seconds(self.in_flight + 1),
            expected_tokens=tokens,
            was_resident=served.is_resident is not False and served.loading_since is None,
            started_as=self.in_flight + 1,
        )
        served.prefixes.add(prompt.beginnings, self.slots)
        self.works.add(work)
        return work

    def saw_token(self, work: Work, now: float) -> float | None:
        """A token came; the seconds since the one before it, None for the first."""
        gap = None
        speed = self.served(work.model).speed
        self.last_sign_at = now
        self.is_unreachable = False
        work.tokens += 1
        if work.first_token_at is None:
            work.first_token_at = now
            if work.was_resident:
                speed.add_first_token(work.expected_first_token_seconds, now - work.dispatched_at)
            self._begin_stretch(work, now)
        elif work.has_stalled:
            # The pause says nothing of its speed.
            gap = now - work.last_token_at
            work.has_stalled = False
            self._begin_stretch(work, now)
        else:
            gap = now - work.last_token_at
            work.stretch_tokens += 1
            seconds = now - work.stretch_began_at
            if work.stretch_tokens >= STRETCH_TOKENS or (
                seconds >= STRETCH_SECONDS and work.stretch_tokens >= LEAST_STRETCH_TOKENS
            ):
                concurrency = (work.stretch_concurrency + self._writing) / 2
                speed.add_tokens(seconds / work.stretch_tokens, concurrency)
                work.was_timed = True
                self._begin_stretch(work, now)
        work.last_token_at = now
        return gap

    def saw_completion(self, work: Work, completion: Completion, now: float) -> float:
        """A whole answer came; the cached tokens that its speed shows."""
        served = self.served(work.model)
        durations = completion.durations
        served.is_resident = True
        served.loading_since = None
        served.missing_until = 0.0
        cached = served.speed.add_completion(completion, expected_cached=work.expected_cached)
        if work.expected_cached >= LEAST_EXPECTED_CACHED:
            found = min(1.0, cached / work.expected_cached * served.cache_trust)
            trust = served.cache_trust + TRUST_WEIGHT * (found - served.cache_trust)
            served.cache_trust = max(LEAST_TRUST, trust)
        if not work.was_timed and completion.completion_tokens > 1:
            seconds = durations.completion_seconds / completion.completion_tokens
            if seconds > 0:
                served.speed.add_tokens(seconds, work.started_as)
        if work.first_token_at is not None and durations.total_seconds > 0:
            spent = durations.total_seconds - durations.completion_seconds
            served.speed.add_overhead(work.first_token_at - work.dispatched_at - spent)
            self._learn_slots(work, completion, now)
        self.tally.prompt_tokens += completion.prompt_tokens
        self.tally.cached_tokens += round(cached)
        self.tally.completion_tokens += completion.completion_tokens
        return cached

    def weight_of(self, work: Work, cause: Cause) -> int:
        """How much a fault says: silence of the whole server until the deadline says it all."""
        if cause not in ("silent", "stalled"):
            return 1
        since = work.last_token_at if work.has_begun else work.dispatched_at
        return 2 if self.last_sign_at <= since else 1

    @property
    def _writing(self) -> int:
        return sum(1 for work in self.works if work.has_begun)

    def _begin_stretch(self, work: Work, now: float) -> None:
        work.stretch_began_at = now
        work.stretch_tokens = 0
        work.stretch_concurrency = self._writing

    def _learn_slots(self, work: Work, completion: Completion, now: float) -> None:
        """Who waited inside the server although the pool saw a free slot shows that there was none."""
        durations = completion.durations
        hidden = durations.hidden_wait_seconds
        self.tally.hidden_wait_seconds += 0.2 * (hidden - self.tally.hidden_wait_seconds)
        worked = durations.prompt_seconds + durations.completion_seconds
        level = work.started_as
        if hidden <= max(HIDDEN_WAIT_SECONDS, HIDDEN_WAIT_SHARE * worked):
            self._waits[level] = max(0, self._waits[level] - 1)
            return
        self._waits[level] += 1
        if level > 1 and self._waits[level] >= WAITS_TO_LOWER and level <= self.real_slots(now):
            self._lowered_to = level - 1
            self._lowered_at = now
            self._waits.clear()
