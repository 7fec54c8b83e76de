"""Which arm of an experiment a caller gets. Pure: the same caller always gets the same arm."""

from dataclasses import dataclass
from hashlib import sha256
from typing import Literal
from uuid import UUID

STEPS = (10, 25, 50, 75, 100)
"""Percent of the callers that get a candidate, one step after the other."""

CONTROL = 0
"""The place of the control among the arms."""

_POSITIONS = 2**64


@dataclass(frozen=True, slots=True)
class Arm:
    """What is different for the callers of an arm; None leaves it as it is without the experiment.

    `mode`, `rerank` and `passages_count` are how passages are found.
    """

    name: str
    model: str | None = None
    prompt_version: str | None = None
    mode: Literal["hybrid", "vector"] | None = None
    rerank: bool | None = None
    passages_count: int | None = None


def unit_of(tenant_id: int, key_id: UUID | None) -> str:
    """Who is assigned: a key; where no keys are asked for, the tenant as one."""
    return f"{tenant_id}:{key_id or ''}"


def position(seed: str, unit: str) -> float:
    """Where a unit stands between 0 and 1: uniform over units, independent between seeds.

    The first 64 bits of SHA-256, of which each output is as likely as any other.
    """
    digest = sha256(f"{seed}\0{unit}".encode()).digest()
    return int.from_bytes(digest[:8]) / _POSITIONS


def arm_place(seed: str, unit: str, candidates_count: int, percent: int) -> int:
    """The place of the unit's arm: `CONTROL`, or that of a candidate from 1.

    As `percent` grows, units go from the control to their candidate and never otherwise: who gets a
    candidate is decided by one position, and which one by another.
    """
    if position(f"{seed}:share", unit) * 100 >= percent:
        return CONTROL
    return 1 + int(position(f"{seed}:candidate", unit) * candidates_count)
