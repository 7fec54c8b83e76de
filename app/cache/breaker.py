"""When to leave a server alone that failed, and when to try it again."""

import time

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 5.0


class Breaker:
    """Opens at the first failure: with Redis away, one caller in a while pays for finding out."""

    def __init__(self) -> None:
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._closed_until_failure = True
        self._retry_at = 0.0

    @property
    def is_open(self) -> bool:
        return not self._closed_until_failure

    def lets_through(self) -> bool:
        """Whether to try. While it is open, one caller may, each time that a pause is over."""
        if self._closed_until_failure:
            return True
        now = time.monotonic()
        if now < self._retry_at:
            return False
        self._retry_at = now + self._pause_seconds
        return True

    def failed(self) -> None:
        if self.is_open:
            self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
        self._closed_until_failure = False
        self._retry_at = time.monotonic() + self._pause_seconds

    def succeeded(self) -> None:
        self._closed_until_failure = True
        self._pause_seconds = FIRST_PAUSE_SECONDS
