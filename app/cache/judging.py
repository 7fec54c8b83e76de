"""Whether answers that paraphrases shared were right: some of them are written anew and compared."""

import asyncio
import random
import re
from collections.abc import Awaitable, Callable

import numpy as np
import structlog

from app.answering.base import Answer
from app.answering.evidence import Statement, contradict
from app.answering.sentences import MARKERS
from app.cache.tallies import Tallies, Tally
from app.embedding.base import QueryEmbedding
from app.errors import FootnoteError
from app.telemetry import CACHE_PARAPHRASES, DEGRADED

AT_ONCE = 1
"""Judgements of one process at a time: they take turns at the model servers with those who ask."""
LEAST_SIMILARITY = 0.8
"""Of two answers in different words that say the same of the same passages."""

_MARKERS = re.compile(MARKERS)

Compare = Callable[[], Awaitable[bool | None]]

log = structlog.get_logger(__name__)


class Judge:
    """Has a share of the shared answers compared, behind the one who asked; counts per tenant.

    Belongs to one event loop.
    """

    def __init__(self, tallies: Tallies, *, share: float) -> None:
        self._tallies = tallies
        self._share = share
        self._judging: set[asyncio.Task[None]] = set()
        self._stopped: set[int] = set()
        self._drawn = random.Random()  # noqa: S311 - a sample, not a secret

    async def tally(self, tenant_id: int) -> Tally | None:
        """What was found so far; None while nobody knows."""
        tally = await self._tallies.of(tenant_id)
        if tally is not None:
            self._note(tenant_id, tally)
        return tally

    async def trusts(self, tenant_id: int) -> bool:
        """Whether answers may be shared; no, while nobody knows."""
        tally = await self.tally(tenant_id)
        return tally is not None and not tally.is_stopped

    async def begin_anew(self, tenant_id: int) -> None:
        await self._tallies.reset(tenant_id)
        self._note(tenant_id, Tally())

    def consider(self, tenant_id: int, compare: Compare) -> None:
        """Perhaps call `compare`, later: whether the answer was right, None where nobody can say."""
        if len(self._judging) < AT_ONCE and self._drawn.random() < self._share:
            task = asyncio.create_task(self._judge(tenant_id, compare))
            self._judging.add(task)
            task.add_done_callback(self._judging.discard)

    async def settle(self) -> None:
        """Wait for what is being judged."""
        await asyncio.gather(*self._judging, return_exceptions=True)

    async def close(self) -> None:
        for task in self._judging:
            task.cancel()
        await self.settle()

    async def _judge(self, tenant_id: int, compare: Compare) -> None:
        try:
            is_right = await compare()
        except FootnoteError as error:
            log.info("paraphrase_not_judged", why=error.detail)
            return
        except Exception:
            log.exception("paraphrase_not_judged")
            return
        if is_right is None:
            return
        CACHE_PARAPHRASES.labels("right" if is_right else "wrong").inc()
        tally = await self._tallies.add(tenant_id, is_wrong=not is_right)
        if tally is not None:
            self._note(tenant_id, tally)

    def _note(self, tenant_id: int, tally: Tally) -> None:
        """Show and say, once, that a tenant's answers are shared no more."""
        if tally.is_stopped and tenant_id not in self._stopped:
            self._stopped.add(tenant_id)
            log.warning(
                "paraphrases_stopped", tenant=tenant_id, judged=tally.judged, wrong=tally.wrong
            )
        elif not tally.is_stopped:
            self._stopped.discard(tenant_id)
        DEGRADED.labels("paraphrases").set(bool(self._stopped))


async def say_the_same(one: Answer, other: Answer, embedding: QueryEmbedding) -> bool:
    """Whether two answers from the same passages tell the same.

    Both decline; or both cite a passage in common, are alike, and neither has a number that the
    other lacks while lacking one itself, or states what the other negates.
    """
    if "declined" in (one.mode, other.mode):
        return one.mode == other.mode
    if not _cited(one) & _cited(other):
        return False
    first, second = _said(one), _said(other)
    if not (first.numbers <= second.numbers or second.numbers <= first.numbers):
        return False
    if contradict(first, second):
        return False
    vectors = await embedding.embed([first.text, second.text], "document")
    return float(np.dot(vectors[0], vectors[1])) >= LEAST_SIMILARITY


def _cited(answer: Answer) -> frozenset[int]:
    return frozenset(one.marker for one in answer.citations)


def _said(answer: Answer) -> Statement:
    return Statement(_MARKERS.sub("", answer.text))
