"""When an instance is taken out of use, and how it comes back. Pure: it neither waits nor asks.

Two faults in a row open the breaker; a server from which nothing came at all until its deadline is
out at once. Only a probe that sees it generate closes the breaker, and then halfway: one request
at a time, then twice as many after each that ends well. Each rest is twice as long as the one
before, and the memory of it fades only with answers that succeed.
"""

from random import Random

FAULTS_TO_OPEN = 2
FIRST_REST_SECONDS = 5.0
MAX_REST_SECONDS = 30.0
JITTER = 0.2
"""Instances that failed together are not probed together."""
SUCCESSES_TO_FORGET = 8
"""So many whole answers in a row shorten the next rest by half."""


class Breaker:
    def __init__(self, random: Random | None = None) -> None:
        self._random = random or Random()  # noqa: S311 - only spreads the probes
        self._faults_in_row = 0
        self._successes_in_row = 0
        self._rests_in_row = 0
        self._trusted_slots: int | None = None
        self.is_open = False

    def slots(self, slots: int) -> int:
        """How many of so many slots may be used now."""
        if self.is_open:
            return 0
        return slots if self._trusted_slots is None else min(slots, self._trusted_slots)

    @property
    def is_trusted(self) -> bool:
        """Whether it is in full use: neither out nor on its way back."""
        return not self.is_open and self._trusted_slots is None

    def record_success(self, slots: int) -> None:
        """A whole answer came. It closes nothing: a straggler may end well on a sick instance."""
        if self.is_open:
            return
        self._faults_in_row = 0
        self._successes_in_row += 1
        if self._successes_in_row >= SUCCESSES_TO_FORGET and self._rests_in_row:
            self._rests_in_row -= 1
            self._successes_in_row = 0
        if self._trusted_slots is not None:
            self._trusted_slots *= 2
            if self._trusted_slots > slots:
                self._trusted_slots = None

    def record_fault(self, weight: int = 1) -> bool:
        """Whether this fault opened the breaker; one of `weight` 2 is proof enough alone."""
        self._faults_in_row += weight
        self._successes_in_row = 0
        if self.is_open or self._faults_in_row < FAULTS_TO_OPEN:
            return False
        self.is_open = True
        return True

    def next_rest_seconds(self) -> float:
        """How long to leave the instance alone before the next probe."""
        seconds = min(FIRST_REST_SECONDS * 2**self._rests_in_row, MAX_REST_SECONDS)
        self._rests_in_row += 1
        return seconds * self._random.uniform(1 - JITTER, 1)

    def close(self) -> None:
        """A probe succeeded. One more fault opens the breaker again, for a longer rest."""
        self.is_open = False
        self._trusted_slots = 1
        self._faults_in_row = FAULTS_TO_OPEN - 1
