"""What each cached value depends on: a key is the hash of all of it, and of nothing else. Pure.

So nothing is ever invalidated. Whatever changes what a value would be now changes its key, and
the value of before is not found any more.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from typing import Any

from app.cache.codec import pack, settled
from app.llm.base import Message

DIGEST_BYTES = 20


def normalise(text: str, *, fold_case: bool = True) -> str:
    """The text but for its composition (NFC), its white space and, if wished, its case."""
    composed = unicodedata.normalize("NFC", text)
    # Lowering can decompose again: İ becomes i and a dot.
    lowered = unicodedata.normalize("NFC", composed.lower()) if fold_case else composed
    return " ".join(lowered.split())


class Key:
    """The base of all keys; the fields of a key are its components."""

    @property
    def digest(self) -> bytes:
        components = tuple(settled(one) for one in components_of(self).values())
        packed = pack((type(self).__name__, components))
        return blake2b(packed, digest_size=DIGEST_BYTES).digest()


def components_of(key: Key) -> Mapping[str, Any]:
    return {field.name: getattr(key, field.name) for field in fields(key)}  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, slots=True)
class EmbeddingKey(Key):
    """`model` is a digest; `text` is normalised, and is what was embedded."""

    model: str
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class ChunksKey(Key):
    """What a retrieval depends on.

    `embedding` is the digest of the question's EmbeddingKey, `access` the groups that the caller
    is held to and the filters, `collections` each collection's id with its generation. `settings`
    are the request's and the service's, and the code that ranks; `wording` is what is read of the
    query besides its vector.
    """

    embedding: bytes
    tenant: int
    access: Any
    collections: Sequence[tuple[int, int]]
    settings: Any
    wording: Any


@dataclass(frozen=True, slots=True)
class AnswerKey(Key):
    """What an answer depends on.

    `question` is normalised, `history` a digest, `prompt` the version of the prompt with the code
    that asks and checks, `model` the digests of the models that write and check, `options` how it
    is sampled, `evidence` the content hashes of the passages in their order.
    """

    question: str
    history: bytes
    tenant: int
    prompt: Any
    model: Any
    options: Any
    evidence: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class ParaphraseKey(Key):
    """What two wordings must have in common to share an answer: an AnswerKey without its question.

    `scope` is what the caller may see and what he asked of it: nobody is told how somebody with
    another access, or in another place, asked.
    """

    history: bytes
    tenant: int
    scope: Any
    prompt: Any
    model: Any
    options: Any
    evidence: Sequence[bytes]

    @classmethod
    def of(cls, key: AnswerKey, scope: Any) -> "ParaphraseKey":
        return cls(
            history=key.history,
            tenant=key.tenant,
            scope=scope,
            prompt=key.prompt,
            model=key.model,
            options=key.options,
            evidence=key.evidence,
        )


def history_digest(history: Sequence[Message]) -> bytes:
    """Of the earlier turns, to the letter: nothing is normalised in what was said before."""
    turns = tuple((message.role, message.content) for message in history)
    return blake2b(pack(turns), digest_size=DIGEST_BYTES).digest()


def digest_of(*components: Any) -> bytes:
    """A short digest of some components, to tell which of them a miss is due to."""
    return blake2b(pack(tuple(map(settled, components))), digest_size=8).digest()
