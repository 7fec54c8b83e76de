"""Answers that are known under another wording: of questions that were answered from the same.

Beside the answers, in the same bucket and for the same time, stands what was asked: under the hash
of all that an answer depends on but the question itself, the latest questions with their vectors
and the keys of their answers. Only questions that were answered in their own words are there, so
nearness never adds up.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.access import Caller
from app.answering.base import Brief
from app.cache.agreement import Wording, disagreement
from app.cache.codec import pack, unpack
from app.cache.judging import Judge
from app.cache.keys import AnswerKey, ParaphraseKey
from app.cache.layer import Layer
from app.cache.transcript import Line, unpacked
from app.embedding.base import QueryEmbedding, Vectors
from app.errors import FootnoteError
from app.telemetry import CACHE_PARAPHRASES

KEPT = 8
"""Questions per evidence: few find the same passages in the same order and are near besides."""

LONGEST_CHARS = 500
"""What is longer is hardly asked twice, and would be long to compare word by word."""

_VECTOR = np.dtype("<f2")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as it was asked, its vector (float16), and the digest of its answer's key."""

    question: str
    vector: bytes
    answer: bytes


@dataclass(frozen=True, slots=True)
class Shared:
    """The answer to another wording: its question, how long it took to write, and its lines."""

    question: str
    took_ms: int
    lines: Sequence[Line]


class Paraphrases:
    """Looks up and remembers; `similarity` is the least cosine of two wordings."""

    def __init__(
        self, layer: Layer, default: QueryEmbedding, judge: Judge, *, similarity: float
    ) -> None:
        self.judge = judge
        self._layer = layer
        self._default = default
        self._similarity = similarity

    async def find(self, caller: Caller, brief: Brief, key: AnswerKey) -> Shared | None:
        """The answer to the nearest wording that may share it; None where there is none."""
        if not _may_share(brief):
            return None
        asked = await self._asked(_index_key(caller, brief, key))
        if not asked:
            return None
        vector = await self._vector(brief)
        if vector is None:
            return None
        alike = sorted(
            ((float(vector @ _read(one.vector)), one) for one in asked),
            key=lambda pair: pair[0],
            reverse=True,
        )
        wording = Wording(brief.question.text)
        near = [
            one
            for cosine, one in alike
            if cosine >= self._similarity and disagreement(wording, Wording(one.question)) is None
        ]
        if not near or not await self.judge.trusts(caller.tenant_id):
            return None
        values = await self._layer.get([one.answer for one in near], is_counted=False)
        for one, value in zip(near, values, strict=True):
            if value is not None and (known := unpacked(value)) is not None:
                self._layer.count("paraphrases")
                CACHE_PARAPHRASES.labels("shared").inc()
                return Shared(one.question, *known)
        return None

    async def remember(self, caller: Caller, brief: Brief, key: AnswerKey) -> None:
        """Note that the question was answered, and its answer kept."""
        if not _may_share(brief):
            return
        vector = await self._vector(brief)
        if vector is None:
            return
        index = _index_key(caller, brief, key)
        own = Asked(brief.question.text, vector.astype(_VECTOR).tobytes(), key.digest)
        # Of two at once one may be lost: then it is not found under another wording, that is all.
        others = [one for one in await self._asked(index) if one.answer != own.answer]
        kept = [own, *others][:KEPT]
        value = pack([(one.question, one.vector, one.answer) for one in kept])
        await self._layer.put(str(caller.tenant_id), {index: value})

    async def _asked(self, index: bytes) -> list[Asked]:
        [value] = await self._layer.get([index], is_counted=False)
        try:
            return [Asked(*one) for one in unpack(value)] if value is not None else []
        except (ValueError, TypeError):
            return []

    async def _vector(self, brief: Brief) -> Vectors | None:
        """Of the question itself: what was searched for may be in other words."""
        embedding = brief.result.embedder or self._default
        try:
            return (await embedding.embed([brief.question.text], "query"))[0]
        except FootnoteError:
            return None  # without a vector nothing is near


def _may_share(brief: Brief) -> bool:
    # Quotes take no time, and are chosen by the question's own words.
    return brief.model is not None and len(brief.question.text) <= LONGEST_CHARS


def _index_key(caller: Caller, brief: Brief, key: AnswerKey) -> bytes:
    question = brief.question
    scope = (caller.groups, question.collections, question.filters)
    return ParaphraseKey.of(key, scope).digest


def _read(vector: bytes) -> Vectors:
    return np.frombuffer(vector, _VECTOR).astype(np.float32)
