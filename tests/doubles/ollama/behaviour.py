"""What a double does, and what it has seen. Shared with those who compute its times beforehand."""

from dataclasses import dataclass
from typing import Any, Literal

PREFILL_SPEED = 15.0
"""A prompt is read this many times faster than an answer is written."""

Fault = Literal["hang", "cut", "no_done", "error_line", "garbage", "status_500", "status_503"]


@dataclass(frozen=True)
class Behaviour:
    """The answer, the machine's speed, and its faults; all of it may change while it runs.

    Answer: `[write 40 tokens as a7]` in the last message makes it `a7.1 a7.2 … a7.40`. Otherwise
    it is `answer`, and without one the first sentence of each of `quoted_sources` sources in the
    prompt with its marker, and `invented_marker` at the end; asked to count, it counts. A model that
    has `thoughts` thinks them first unless it is told not to.

    Speed: reading a prompt takes `first_token_seconds` and `prefill_token_seconds` for each token
    that its slot has not cached; each token of the answer takes `step_seconds`.

    Faults of requests: `fault` strikes after `fault_after_tokens` in the next `faults_left`
    generations (None: all). Faults of the whole instance: it `hangs` (all that generates stands
    still, everything else is answered), is `slowness` times slower, `refuses` (no connection lives,
    none is taken), does so for every other `flap_seconds`, `leaks_slots` of clients that leave.
    """

    model: str = "llama3.1:8b"
    digest: str = "42182419e950" + "0" * 52
    other_models: tuple[str, ...] = ()
    answer: str | None = None
    quoted_sources: int = 1
    invented_marker: int | None = None
    thoughts: str = ""
    done_reason: str = "stop"
    piece_bytes: int | None = None

    slots: int = 1
    max_loaded_models: int = 3
    max_queue: int = 512
    load_seconds: float = 0.0
    first_token_seconds: float = 0.0
    prefill_token_seconds: float = 0.0
    token_seconds: float = 0.0
    slowdown: float = 0.0

    fault: Fault | None = None
    fault_after_tokens: int = 0
    faults_left: int | None = None
    hangs: bool = False
    slowness: float = 1.0
    refuses: bool = False
    flap_seconds: float = 0.0
    leaks_slots: bool = False

    @classmethod
    def of_speed(cls, tokens_per_second: float, **more: Any) -> "Behaviour":
        """A machine that writes one answer alone at this speed."""
        token_seconds = 1 / tokens_per_second
        prefill_seconds = token_seconds / PREFILL_SPEED
        return cls(token_seconds=token_seconds, prefill_token_seconds=prefill_seconds, **more)

    def prefill_seconds(self, uncached_tokens: int) -> float:
        seconds = self.first_token_seconds + uncached_tokens * self.prefill_token_seconds
        return seconds * self.slowness

    def step_seconds(self, generating: int) -> float:
        """For one token of one answer, while `generating` answers are written side by side."""
        return self.token_seconds * self.slowness * (1 + self.slowdown * (generating - 1))


@dataclass
class Stats:
    """`late_seconds` is how much later than due the `tokens` came, together, since the process had
    no core to run on. `most_in_flight` counts all generations asked for, waiting ones too, so it shows whether a
    balancer keeps to the slots. It is taken a moment after each arrival, because one client's
    leaving and the next one's coming may be seen in either order.
    """

    requests: int = 0
    generating: int = 0
    most_generating: int = 0
    waiting: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    completed: int = 0
    aborted: int = 0
    loads: int = 0
    tokens: int = 0
    late_seconds: float = 0.0
    last_request: dict[str, Any] | None = None
