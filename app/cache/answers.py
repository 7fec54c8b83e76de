"""Layer 2: whole answers, by the question, all that the model gets to see, and the model itself."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from functools import partial
from time import perf_counter

from app.access import Caller
from app.answering.base import Answer, AnswerEvent, Brief, Finished, SourcesFound, Writer
from app.cache.code import code_digest
from app.cache.judging import say_the_same
from app.cache.keys import AnswerKey, digest_of, history_digest, normalise
from app.cache.layer import Layer
from app.cache.paraphrases import Paraphrases, Shared
from app.cache.single_flight import Flights
from app.cache.transcript import Line, Reading, Writing, is_worth_keeping, packed, unpacked
from app.costs.ledger import Ledger
from app.costs.prices import Payer
from app.embedding.base import QueryEmbedding, vectors_digest
from app.search.base import Hit

CODE = ("app.answering", "app.terms")
EXTRACTIVE = "extractive"


class CachedWriter:
    """A Writer in front of another, whose whole answers are kept and told again.

    Of identical briefs at the same time one is written. `default` is the embedding model of
    searches that name none.
    """

    def __init__(
        self,
        inner: Writer,
        default: QueryEmbedding,
        ledger: Ledger,
        layer: Layer,
        flights: Flights,
        paraphrases: Paraphrases | None = None,
    ) -> None:
        self._ledger = ledger
        self._inner = inner
        self._default = default
        self._layer = layer
        self._flights = flights
        self._paraphrases = paraphrases

    async def write(self, caller: Caller, brief: Brief) -> AsyncGenerator[AnswerEvent]:
        key = await self._key(caller, brief)
        if key is None:  # nobody knows which weights would answer
            async with aclosing(self._inner.write(caller, brief)) as events:
                async for event in events:
                    yield event
            return
        digest = key.digest
        [value] = await self._layer.get([digest])
        known = None if value is None else unpacked(value)
        origin = None
        if known is None and (shared := await self._shared(caller, brief, key)) is not None:
            known, origin = (shared.took_ms, shared.lines), shared.question
        if known is not None:
            took_ms, lines = known
            self._layer.count("saved_us", took_ms * 1000)
            reading = self._reading(brief, is_known=True, paraphrase_of=origin)
            for line in lines:
                yield self._counted(reading.event(line), caller, brief)
            return
        self._layer.explain_miss(*_subject_of(key))
        seat = self._flights.join(digest, lambda: self._written(caller, brief, key))
        if not seat.leads:
            self._layer.count("joined")
        reading = self._reading(brief, is_known=not seat.leads)
        async with aclosing(seat.lines) as growing:
            async for line in growing:
                yield self._counted(reading.event(line), caller, brief)

    async def _shared(self, caller: Caller, brief: Brief, key: AnswerKey) -> Shared | None:
        """The answer to another wording, if there is one; a sample of them is judged afterwards."""
        if self._paraphrases is None:
            return None
        shared = await self._paraphrases.find(caller, brief, key)
        if shared is not None:
            compare = partial(self._is_right, caller, brief, key, shared.lines)
            self._paraphrases.judge.consider(caller.tenant_id, compare)
        return shared

    async def _is_right(
        self, caller: Caller, brief: Brief, key: AnswerKey, lines: Sequence[Line]
    ) -> bool | None:
        """Whether these lines say what the question gets when it is answered anew.

        None where it gets no answer that would be kept. One that would be kept is.
        """
        # Nobody waits for it, so it lets everybody pass.
        question = replace(brief.question, lane="batch", wait_seconds=None)
        behind = replace(brief, question=question)
        async with aclosing(self._written(caller, behind, key)) as writing:
            fresh = _told(brief.result.hits, [line async for line in writing])
        served = _told(brief.result.hits, lines)
        if fresh is None or served is None or not is_worth_keeping(fresh, brief.result.hits):
            return None
        return await say_the_same(served, fresh, brief.result.embedder or self._default)

    async def _written(self, caller: Caller, brief: Brief, key: AnswerKey) -> AsyncGenerator[Line]:
        """The lines of an answer that is written now; it is kept before its last one is said."""
        started = perf_counter()
        writing = Writing()
        lines: list[Line] = []
        hits: Sequence[Hit] = ()
        async with aclosing(self._inner.write(caller, brief)) as events:
            async for event in events:
                line = writing.line(event)
                lines.append(line)
                if isinstance(event, SourcesFound):
                    hits = event.hits
                if isinstance(event, Finished):
                    took_ms = int((perf_counter() - started) * 1000)
                    self._layer.count("computed")
                    self._layer.count("computed_us", took_ms * 1000)
                    if is_worth_keeping(event.answer, hits) and await self._is_still(brief, key):
                        value = packed(lines, took_ms)
                        await self._layer.put(str(caller.tenant_id), {key.digest: value})
                        if self._paraphrases is not None:
                            await self._paraphrases.remember(caller, brief, key)
                yield line

    async def _is_still(self, brief: Brief, key: AnswerKey) -> bool:
        """Whether the weights are the same as before: a tag may be pulled while it answers."""
        return await self._models(brief) == key.model

    def _reading(
        self, brief: Brief, *, is_known: bool, paraphrase_of: str | None = None
    ) -> Reading:
        cache = {**brief.result.cache, "answer": "hit" if is_known else "miss"}
        return Reading(
            brief.result.hits,
            cache,
            is_known=is_known,
            notice=brief.notice,
            paraphrase_of=paraphrase_of,
        )

    def _counted(self, event: AnswerEvent, caller: Caller, brief: Brief) -> AnswerEvent:
        """The event; of an answer that was known it is written down what that saved."""
        if isinstance(event, Finished) and event.answer.cache["answer"] == "hit":
            saved, model = event.answer.saved, event.answer.model
            self._layer.count("saved_tokens", saved.prompt_tokens + saved.completion_tokens)
            self._layer.count("saved_nanos", int(saved.cost * 1_000_000_000))
            if model is not None:
                payer = Payer(caller.tenant_id, caller.key_id, brief.question.collections)
                self._ledger.book_cached(payer, model, saved.cost)
        return event

    async def _key(self, caller: Caller, brief: Brief) -> AnswerKey | None:
        models = await self._models(brief)
        if models is None:
            return None
        question = brief.question
        return AnswerKey(
            question=normalise(question.text),
            history=history_digest(question.history),
            tenant=caller.tenant_id,
            prompt=(question.prompt_version, code_digest(*CODE)),
            model=models,
            options=asdict(brief.options),
            evidence=[hit.content_hash for hit in brief.result.hits],
        )

    async def _models(self, brief: Brief) -> tuple[str, str] | None:
        writes = EXTRACTIVE if brief.model is None else await brief.model.digest()
        if writes is None:
            return None
        checks = (brief.result.embedder or self._default).embedder
        return writes, vectors_digest(checks, "query")


def _told(hits: Sequence[Hit], lines: Sequence[Line]) -> Answer | None:
    """The answer that the lines end with; raises the error that they end with."""
    reading = Reading(hits, {}, is_known=False)
    answer = None
    for line in lines:
        event = reading.event(line)
        if isinstance(event, Finished):
            answer = event.answer
    return answer


def _subject_of(key: AnswerKey) -> tuple[bytes, Mapping[str, bytes]]:
    return digest_of(key.question, key.history), {
        "scope": digest_of(key.tenant),
        "settings": digest_of(key.prompt, key.model, key.options),
        "evidence_changed": digest_of(key.evidence),
    }
