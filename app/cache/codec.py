"""How values and keys become bytes: msgpack, which has one spelling for each value given in order."""

from collections.abc import Sequence
from typing import Any

import msgpack  # pyright: ignore[reportMissingTypeStubs]


def pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType, reportAssignmentType]
    return packed


def unpack(packed: bytes) -> Any:
    """Sequences come back as tuples; raises ValueError for what `pack` did not make."""
    try:
        return msgpack.unpackb(packed, use_list=False, raw=False, strict_map_key=False)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    except (msgpack.exceptions.UnpackException, ValueError, TypeError) as error:
        raise ValueError("not a packed value") from error


_PLAIN = frozenset({str, bytes, int, float, bool, type(None)})


def settled(value: Any) -> Any:
    """A value in which equal contents are in equal order: sets and mappings are sorted."""
    kind = type(value)  # pyright: ignore[reportUnknownVariableType]
    if kind in _PLAIN:
        return value
    if kind is tuple or kind is list:
        return tuple(map(settled, value))
    if isinstance(value, dict):
        return ("map", sorted((str(name), settled(one)) for name, one in value.items()))  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, set | frozenset):
        return ("set", sorted(map(settled, value), key=repr))  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(map(settled, value))  # pyright: ignore[reportUnknownArgumentType]
    if value is None or isinstance(value, str | bytes | int | float):
        return value
    return (type(value).__name__, str(value))
