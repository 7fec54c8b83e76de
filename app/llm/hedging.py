"""How many requests may be sent twice. Pure."""

SHARE = 0.02
MOST_SAVED = 2.0
NEAR_SATURATION = 0.8
"""No request is sent twice while more of the slots than this are taken."""


class HedgeBudget:
    """At most SHARE of all requests: each earns a part of a second attempt."""

    def __init__(self) -> None:
        self._saved = 1.0

    def earn(self) -> None:
        self._saved = min(MOST_SAVED, self._saved + SHARE)

    @property
    def is_spent(self) -> bool:
        return self._saved < 1

    def spend(self) -> None:
        self._saved -= 1
