"""One layer of the cache: where its values are, and what is counted of it."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from time import perf_counter
from typing import Literal

from app.cache.base import LayerName, Store
from app.cache.statistics import Statistics

REMEMBERED = 20_000
"""So many subjects are remembered per process, to tell why something was not found."""

Outcome = Literal["hit", "miss", "off"]

outcomes: ContextVar[dict[LayerName, Outcome] | None] = ContextVar("outcomes", default=None)
"""What the layers had for the request that is being served, for its reply."""

TRAITS = ("scope", "settings", "evidence_changed")
"""What a miss of something asked before is due to; the first that differs is named."""


class Layer:
    def __init__(self, name: LayerName, store: Store, statistics: Statistics) -> None:
        self.name: LayerName = name
        self.store = store
        self.statistics = statistics
        self._seen: OrderedDict[bytes, Mapping[str, bytes]] = OrderedDict()

    async def get(self, keys: Sequence[bytes], *, is_counted: bool = True) -> list[bytes | None]:
        started = perf_counter()
        found = await self.store.get(self.name, keys)
        if not is_counted:
            return found
        hits = sum(one is not None for one in found)
        self.statistics.looked_up(
            self.name,
            hits=hits,
            misses=len(found) - hits,
            seconds=perf_counter() - started,
        )
        return found

    async def put(self, bucket: str, values: Mapping[bytes, bytes]) -> None:
        await self.store.put(self.name, bucket, values)

    def note(self, outcome: Outcome) -> None:
        """For the reply to the request that is being served; what came first counts."""
        current = outcomes.get()
        if current is not None and current[self.name] == "off":
            current[self.name] = outcome

    @property
    def is_noted(self) -> bool:
        """Whether the request that is being served was here before."""
        current = outcomes.get()
        return current is not None and current[self.name] != "off"

    def count(self, name: str, amount: int = 1) -> None:
        self.statistics.add(self.name, name, amount)

    def explain_miss(self, subject: bytes, traits: Mapping[str, bytes]) -> str:
        """Count why it was missed, by what this process saw of the subject before."""
        before = self._seen.get(subject)
        if before is None:
            reason = "new"
        else:
            reason = next((name for name in TRAITS if before.get(name) != traits[name]), "gone")
        self.count(f"missed:{reason}")
        self.remember(subject, traits)
        return reason

    def remember(self, subject: bytes, traits: Mapping[str, bytes]) -> None:
        self._seen[subject] = traits
        self._seen.move_to_end(subject)
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
