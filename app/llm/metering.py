"""A model whose generations are booked, each to whoever it is for."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from decimal import Decimal
from time import perf_counter

from app.costs.ledger import Ledger, Listing, Reservation, Spent
from app.errors import FootnoteError, GenerationUnavailable
from app.llm.base import (
    UNHURRIED,
    Admission,
    ChatModel,
    Completion,
    GenerationEvent,
    GenerationOptions,
    Message,
    Queued,
    TextDelta,
)

TEMPLATE_TOKENS = 16
"""What a model's template adds to a message, at the most."""
BYTES_PER_TOKEN = 3
"""Fewer than any model's, so that estimates are rather too high."""
RESERVED_MS = 180_000
"""The working time that is held back at a price per hour; what takes longer is booked in full."""


class MeteredModel:
    """A ChatModel around another one. What it generates at a price is held back before.

    Raises BudgetExhausted and GenerationUnavailable before the first text where the money is not
    there. A stream that broke, or whose reader left, is booked by an estimate of what came.
    """

    def __init__(self, model: ChatModel, listing: Listing, ledger: Ledger) -> None:
        self._model = model
        self._listing = listing
        self._ledger = ledger

    @property
    def name(self) -> str:
        return self._model.name

    async def digest(self) -> str | None:
        return await self._model.digest()

    async def stream(
        self,
        messages: Sequence[Message],
        options: GenerationOptions,
        admission: Admission = UNHURRIED,
    ) -> AsyncGenerator[GenerationEvent]:
        """See ChatModel; the Completion says what it cost."""
        reservation = await self._reserve(messages, options, admission)
        generation = _Generation(self._listing, self._ledger, admission, reservation, messages)
        try:
            async with aclosing(self._model.stream(messages, options, admission)) as events:
                async for event in events:
                    yield generation.seen(event)
        except FootnoteError:
            generation.failed()
            raise
        finally:
            generation.left()

    async def _reserve(
        self, messages: Sequence[Message], options: GenerationOptions, admission: Admission
    ) -> Reservation | None:
        price = self._listing.price
        if price.is_free:
            return None
        if admission.payer is None:
            raise GenerationUnavailable(
                f"{self._listing.model} costs money, and nobody pays for this.",
                hint="Ask a model that costs nothing.",
            )
        # A token is a byte or more, so there cannot be more of them.
        prompt_tokens = _bytes(messages) + TEMPLATE_TOKENS * len(messages)
        worst = price.of(prompt_tokens, options.max_tokens, took_ms=RESERVED_MS)
        return await self._ledger.reserve(admission.payer, self._listing, worst)


class _Generation:
    """One generation on its way into the ledger, which it reaches once, however it ends."""

    def __init__(
        self,
        listing: Listing,
        ledger: Ledger,
        admission: Admission,
        reservation: Reservation | None,
        messages: Sequence[Message],
    ) -> None:
        self._listing = listing
        self._ledger = ledger
        self._payer = admission.payer
        self._reservation = reservation
        self._messages = messages
        self._started = perf_counter()
        self._deltas = 0
        self._text_bytes = 0
        self._is_over = False

    def seen(self, event: GenerationEvent) -> GenerationEvent:
        """The event as it goes on; the last one with what it all cost."""
        match event:
            case Queued():
                self._started = perf_counter()
            case TextDelta():
                self._deltas += 1
                self._text_bytes += len(event.text.encode())
            case Completion():
                worked_seconds = event.durations.total_seconds - event.durations.hidden_wait_seconds
                spent = Spent(
                    prompt_tokens=event.prompt_tokens,
                    completion_tokens=event.completion_tokens,
                    cached_tokens=min(event.cached_tokens, event.prompt_tokens),
                    took_ms=round((worked_seconds or self._seconds()) * 1000),
                )
                return replace(event, cost=self._end(spent))
        return event

    def failed(self) -> None:
        """The model gave an error. Before the first text nothing was generated."""
        if not self._deltas:
            self._release()

    def left(self) -> None:
        """The stream is over. If it was not complete, what came is estimated."""
        if self._is_over:
            return
        if self._reservation is None and not self._deltas:
            return
        spent = Spent(
            prompt_tokens=_bytes(self._messages) // BYTES_PER_TOKEN,
            completion_tokens=max(self._deltas, self._text_bytes // BYTES_PER_TOKEN),
            cached_tokens=0,
            took_ms=round(self._seconds() * 1000),
        )
        self._end(spent, interrupted=True)

    def _end(self, spent: Spent, *, interrupted: bool = False) -> Decimal:
        self._is_over = True
        if self._payer is None:
            return Decimal(0)
        return self._ledger.book(
            self._payer,
            self._listing,
            spent,
            mode="interrupted" if interrupted else "generated",
            reservation=self._reservation,
        )

    def _release(self) -> None:
        self._is_over = True
        if self._reservation is not None:
            self._ledger.release(self._reservation)

    def _seconds(self) -> float:
        return perf_counter() - self._started


def _bytes(messages: Sequence[Message]) -> int:
    return sum(len(message.content.encode()) for message in messages)
