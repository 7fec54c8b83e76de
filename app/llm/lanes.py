"""The one line of waiting requests, and what each owner may have of the servers. Pure."""

from collections import Counter, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from app.llm.base import Lane

Request = TypeVar("Request")

MOST_OWNERS = 10_000
SECONDS_PER_MINUTE = 60.0


class Lanes(Generic[Request]):
    """Interactive before batch; within a lane, who came first. Iterates in that order."""

    def __init__(self) -> None:
        self._lanes: dict[Lane, deque[Request]] = {"interactive": deque(), "batch": deque()}

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def __iter__(self) -> Iterator[Request]:
        for lane in self._lanes.values():
            yield from lane

    def length(self, lane: Lane) -> int:
        return len(self._lanes[lane])

    def ahead(self, lane: Lane) -> int:
        """How many go before one that joins this lane now."""
        waiting = self._lanes
        return len(waiting["interactive"]) + (len(waiting["batch"]) if lane == "batch" else 0)

    def join(self, request: Request, lane: Lane, *, in_front: bool = False) -> None:
        """`in_front`: it had its turn already, and lost the server by no fault of its own."""
        if in_front:
            self._lanes[lane].appendleft(request)
        else:
            self._lanes[lane].append(request)

    def leave(self, request: Request, lane: Lane) -> bool:
        """False when it was not there."""
        try:
            self._lanes[lane].remove(request)
        except ValueError:
            return False
        return True


class OwnerLimits:
    """Requests at once and tokens per minute of each owner; zero is no limit.

    Tokens are charged as expected when a request comes and put right when it is over. A balance
    fills steadily up to a minute's worth. Of `processes` each grants its share.
    """

    def __init__(self, *, concurrency: int, tokens_per_minute: int) -> None:
        self._concurrency = concurrency
        self._tokens_per_minute = tokens_per_minute
        self._running = Counter[str]()
        self._spent: dict[str, tuple[float, float]] = {}
        """Tokens that are not refilled yet, and when that was so."""
        self.processes = 1

    @property
    def concurrency(self) -> int:
        """What one owner may run in this process, at least one; 0 is no limit."""
        return max(1, self._concurrency // self.processes) if self._concurrency else 0

    def has_room(self, owner: str) -> bool:
        return not (owner and self._concurrency) or self._running[owner] < self.concurrency

    def seconds_until_tokens(self, owner: str, now: float) -> float:
        """Until the owner may spend again; 0 when he may now."""
        if not (owner and self._tokens_per_minute):
            return 0.0
        excess = self._spent_at(owner, now) - self._tokens_per_minute / self.processes
        return max(0.0, excess / self._per_second)

    def begin(self, owner: str) -> None:
        self._running[owner] += 1

    def end(self, owner: str) -> None:
        self._running[owner] -= 1
        if self._running[owner] <= 0:
            del self._running[owner]

    def charge(self, owner: str, tokens: float, now: float) -> None:
        """Negative tokens are given back."""
        if not (owner and self._tokens_per_minute):
            return
        if len(self._spent) >= MOST_OWNERS:
            self._spent = {key: at for key, at in self._spent.items() if self._spent_at(key, now)}
        self._spent[owner] = (max(0.0, self._spent_at(owner, now) + tokens), now)

    @property
    def _per_second(self) -> float:
        return self._tokens_per_minute / self.processes / SECONDS_PER_MINUTE

    def _spent_at(self, owner: str, now: float) -> float:
        spent, at = self._spent.get(owner, (0.0, now))
        return max(0.0, spent - (now - at) * self._per_second)
