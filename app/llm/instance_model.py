"""How fast one server is with one model, learnt from what it says of its own work. Pure.

A request costs: load if the model is not resident, reading of what is not cached, and writing,
whose speed depends on how many are served at once. A whole request's time is never averaged: it
measures how long answers are, not how fast the server is.
"""

from math import log

from app.llm.base import Completion
from app.llm.estimates import Estimate, Spread

PRIOR_PROMPT_SECONDS = 0.002
PRIOR_COMPLETION_SECONDS = 0.03
PRIOR_LOAD_SECONDS = 10.0
PRIOR_OVERHEAD_SECONDS = 0.005
PRIOR_SLOWDOWN = 0.1
MOST_SLOWDOWN = 1.0
LEARNING_SLOWDOWN = 0.05

LOADED_SECONDS = 0.1
"""A shorter load is the look-up of a model that is resident."""
LEAST_PROMPT_TOKENS = 8

P95_DEVIATIONS = 1.64
P99_DEVIATIONS = 2.33
ENOUGH_SAMPLES = 5
MARGIN_SECONDS = 0.4
"""Added to a predicted first token: what the network and a busy event loop may take."""
LEAST_STALL_SECONDS = 2.0
STALL_TOKENS = 40
"""A stream that is silent for as long as so many tokens usually take has stalled."""


class InstanceModel:
    """Speeds of one server with one model; seconds and tokens."""

    def __init__(self) -> None:
        self._prompt = Estimate(PRIOR_PROMPT_SECONDS)
        self._completion = Estimate(PRIOR_COMPLETION_SECONDS)
        self._load = Estimate(PRIOR_LOAD_SECONDS)
        self._overhead = Estimate(PRIOR_OVERHEAD_SECONDS)
        self._first_token = Spread()
        self.slowdown = PRIOR_SLOWDOWN

    # --- predictions -----------------------------------------------------------------------------

    @property
    def prompt_token_seconds(self) -> float:
        return self._prompt.value

    @property
    def load_seconds(self) -> float:
        return self._load.value

    @property
    def is_known(self) -> bool:
        """Whether its writing was timed."""
        return self._completion.samples_count > 0

    @property
    def knows_prompt(self) -> bool:
        return self._prompt.samples_count > 0

    @property
    def knows_load(self) -> bool:
        return self._load.samples_count > 0

    def token_seconds(self, concurrency: float) -> float:
        """Between two tokens of one answer when so many are written at once."""
        return self._completion.value * self._slowed(concurrency)

    def first_token_seconds(self, prompt_tokens: float) -> float:
        """Of a resident model with a free slot; `prompt_tokens` are those that it has not cached."""
        return self._overhead.value + prompt_tokens * self._prompt.value

    def first_token_within(self, expected_seconds: float, deviations: float) -> float | None:
        """What a prediction of the first token is exceeded by so rarely; None: too little known."""
        if self._first_token.samples_count < ENOUGH_SAMPLES:
            return None
        return expected_seconds * self._first_token.factor(deviations)

    def stall_seconds(self) -> float:
        return max(LEAST_STALL_SECONDS, STALL_TOKENS * self._completion.value)

    def doubt(self) -> None:
        """It has failed: whatever it does next is what it can do now."""
        self._prompt.doubt()
        self._completion.doubt()

    # --- learning --------------------------------------------------------------------------------

    def add_tokens(self, token_seconds: float, concurrency: float) -> None:
        """A stretch of a stream: the mean time of a token in it, and how many were written."""
        usual = self.token_seconds(concurrency)
        is_usual = usual / 2 < token_seconds < usual * 2
        if concurrency > 1 and is_usual and self._completion.samples_count >= ENOUGH_SAMPLES:
            more = concurrency - 1
            error = token_seconds / usual - 1
            step = LEARNING_SLOWDOWN * error * more / self._slowed(concurrency)
            self.slowdown = min(MOST_SLOWDOWN, max(0.0, self.slowdown + step))
        self._completion.add(token_seconds / self._slowed(concurrency))

    def add_completion(self, completion: Completion, *, expected_cached: float) -> float:
        """Learn reading and loading from a whole answer; returns the cached tokens that show.

        Ollama counts cached tokens as read, and says the time of the others only: whichever is
        closer to the usual speed, with the expected cached ones or without, was the case.
        """
        durations = completion.durations
        self.add_load(durations.load_seconds)
        tokens, seconds = completion.prompt_tokens, durations.prompt_seconds
        if tokens < LEAST_PROMPT_TOKENS or seconds <= 0:
            return 0.0
        read = tokens - min(expected_cached, tokens - 1)
        if self._prompt.samples_count and read < tokens:
            usual = self._prompt.value
            is_hit = abs(log(seconds / (read * usual))) < abs(log(seconds / (tokens * usual)))
            if is_hit:
                if read >= LEAST_PROMPT_TOKENS:
                    self._prompt.add(seconds / read)
                return max(0.0, tokens - seconds / usual)
        self._prompt.add(seconds / tokens)
        return 0.0

    def add_load(self, seconds: float) -> None:
        if seconds > LOADED_SECONDS:
            self._load.add(seconds)

    def add_first_token(self, expected_seconds: float, seconds: float) -> None:
        """Of a request to a resident model."""
        self._first_token.add(expected_seconds, seconds)

    def add_overhead(self, seconds: float) -> None:
        """What of a first token's time the server did not spend: the way there and back."""
        self._overhead.add(max(0.0005, seconds))

    def _slowed(self, concurrency: float) -> float:
        return 1 + self.slowdown * max(0.0, concurrency - 1)
