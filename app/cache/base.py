"""The words of caching: layers, what bounds them, and where their values are kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

LayerName = Literal["embedding", "chunks", "answer"]
LAYERS: tuple[LayerName, ...] = get_args(LayerName)

SHARED = "shared"
"""The bucket of what belongs to no tenant."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one layer. A bucket is what one tenant has in it; what is over goes least used first."""

    ttl_seconds: float
    layer_bytes: int
    bucket_bytes: int
    entry_bytes: int


@dataclass(frozen=True, slots=True)
class Held:
    """What a layer holds now, as far as it is accounted for, and what was evicted from it so far."""

    entries: int = 0
    bytes: int = 0
    evictions: int = 0


class Store(Protocol):
    """Values by layer and key, for a while. Never raises: what cannot be had is not there."""

    @property
    def problem(self) -> str | None:
        """Why it works badly or not at all, in words; None while it works."""
        ...

    @property
    def is_away(self) -> bool:
        """Whether to do without it: it failed a moment ago."""
        ...

    async def get(self, layer: LayerName, keys: Sequence[bytes]) -> list[bytes | None]:
        """In the order of the keys."""
        ...

    async def put(self, layer: LayerName, bucket: str, values: Mapping[bytes, bytes]) -> None: ...

    async def clear(self, layer: LayerName, bucket: str | None = None) -> int:
        """Forget a bucket, or the whole layer; how many values it was."""
        ...

    async def held(self) -> Mapping[LayerName, Held]: ...
