"""When an instance is taken out of use, and for how long. Pure: it neither waits nor asks.

Two faults in a row open the breaker. Only a probe that sees the instance generate closes it, and
each rest is twice as long as the one before, until an answer succeeds.
"""

from random import Random

FAULTS_TO_OPEN = 2
FIRST_REST_SECONDS = 5.0
MAX_REST_SECONDS = 30.0
JITTER = 0.2
"""Instances that failed together are not probed together."""


class Breaker:
    def __init__(self, random: Random | None = None) -> None:
        self._random = random or Random()  # noqa: S311 - only spreads the probes
        self._faults_in_row = 0
        self._rests_in_row = 0
        self.is_open = False

    def record_success(self) -> None:
        """A whole answer came. It closes nothing: a straggler may end well on a sick instance."""
        if not self.is_open:
            self._faults_in_row = 0
            self._rests_in_row = 0

    def record_fault(self) -> bool:
        """Whether this fault opened the breaker."""
        self._faults_in_row += 1
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
        self._faults_in_row = FAULTS_TO_OPEN - 1
