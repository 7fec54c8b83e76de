"""Which prompt's beginning a server has probably still in its cache. Pure.

A slot of Ollama keeps what it read last. A prompt is known by hashes of its beginnings, one every
BLOCK_CHARS characters; the server puts a prompt into the slot that holds the most of it, else into the
one unused for longest.
"""

from collections.abc import Sequence
from itertools import takewhile

from app.llm.base import Message

BLOCK_CHARS = 256
MOST_BLOCKS = 512
SAME_PROMPT = 0.5
"""A slot is reused for a prompt of which it holds so much."""

Beginnings = tuple[int, ...]


def beginnings(messages: Sequence[Message]) -> Beginnings:
    """The hashes of a prompt's beginnings, shortest first."""
    text = "\0".join(f"{one.role}\0{one.content}" for one in messages)
    hashes: list[int] = []
    known = 0
    for end in range(BLOCK_CHARS, min(len(text), BLOCK_CHARS * MOST_BLOCKS) + 1, BLOCK_CHARS):
        known = hash((known, text[end - BLOCK_CHARS : end]))
        hashes.append(known)
    return tuple(hashes)


class PrefixMemory:
    """What the slots of one server hold, latest last."""

    def __init__(self) -> None:
        self._held: list[Beginnings] = []

    def shared_chars(self, prompt: Beginnings) -> int:
        """How much of the prompt's beginning some slot holds."""
        return BLOCK_CHARS * max((_shared(prompt, held) for held in self._held), default=0)

    def add(self, prompt: Beginnings, slots: int) -> None:
        """The server has read this prompt, in one of so many slots."""
        closest = max(self._held, key=lambda held: _shared(prompt, held), default=())
        if closest and _shared(prompt, closest) >= SAME_PROMPT * len(prompt):
            self._held.remove(closest)
        self._held.append(prompt)
        del self._held[:-slots]

    def forget(self) -> None:
        self._held.clear()


def _shared(one: Beginnings, other: Beginnings) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
