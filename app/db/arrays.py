"""Arrays as parameters: `real[]`, `bigint[]`, `text[]` and `halfvec` in the binary form, in one piece.

psycopg's own lists are dumped item by item, which takes longer than most of our queries.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.abc import DumperKey, PyFormat
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format


@dataclass(frozen=True, slots=True)
class HalfVector:
    """A vector as pgvector's `halfvec`: `values` of shape (dimensions,), rounded to half precision.

    A statement must say `::halfvec` of it. Sent as `real[]`, it would be converted anew for every row
    that it is compared with, which takes longer than comparing.
    """

    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Texts:
    """Strings as `text[]`."""

    values: Sequence[str]


class _TextsDumper(Dumper):
    format = Format.BINARY
    oid = 0  # else it would be taken for lists that are copied into such a column, too
    item_oid = 25

    def dump(self, obj: Texts) -> Buffer:
        parts = [struct.pack("!iiIii", 1, 0, self.item_oid, len(obj.values), 1)]
        for value in obj.values:
            item = value.encode()
            parts += (len(item).to_bytes(4), item)
        return b"".join(parts)


class _HalfVectorDumper(Dumper):
    format = Format.BINARY
    oid = 0  # differs from database to database; the server takes it from the statement

    def dump(self, obj: HalfVector) -> Buffer:
        return struct.pack("!hh", len(obj.values), 0) + obj.values.astype(">f2").tobytes()


class _ArrayDumper(Dumper):
    """Finds the dumper for an array by the kind of its items."""

    format = Format.BINARY

    def get_key(self, obj: NDArray[Any], format: PyFormat) -> DumperKey:
        return (np.ndarray, obj.dtype.type)

    def upgrade(self, obj: NDArray[Any], format: PyFormat) -> Dumper:
        kinds: dict[str, type[_ItemsDumper]] = {"f": _RealsDumper, "i": _BigintsDumper}
        return kinds[obj.dtype.kind](np.ndarray)

    def dump(self, obj: NDArray[Any]) -> Buffer:
        # Dumper is abstract in it, and psycopg asks for the upgrade first.
        raise NotImplementedError("upgrade() gives the dumper")  # pragma: no cover


class _ItemsDumper(Dumper):
    """One dimension, without NULL."""

    format = Format.BINARY
    item_oid: int
    item_type: str

    def dump(self, obj: NDArray[Any]) -> Buffer:
        width = int(self.item_type[-1])
        items = np.empty(len(obj), [("bytes", ">i4"), ("value", self.item_type)])
        items["bytes"] = width
        items["value"] = obj
        head = struct.pack("!iiIii", 1, 0, self.item_oid, len(obj), 1)
        return head + items.tobytes()


class _RealsDumper(_ItemsDumper):
    oid = 1021
    item_oid = 700
    item_type = ">f4"


class _BigintsDumper(_ItemsDumper):
    oid = 1016
    item_oid = 20
    item_type = ">i8"


def register() -> None:
    """For all connections opened from now on."""
    psycopg.adapters.register_dumper(np.ndarray, _ArrayDumper)
    psycopg.adapters.register_dumper(HalfVector, _HalfVectorDumper)
    psycopg.adapters.register_dumper(Texts, _TextsDumper)
