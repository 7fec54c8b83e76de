"""Answers in a model's words or in the passages' own, checked sentence by sentence."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

import numpy as np

from app.access import Caller
from app.answering.base import (
    Answer,
    AnswerEvent,
    Brief,
    CitationFound,
    Finished,
    Question,
    SourcesFound,
    TextDelta,
    Usage,
)
from app.answering.citations import Draft
from app.answering.extractive import Candidate, choose, find_candidates, shortlist, written
from app.answering.grounding import Grounding
from app.answering.prompts import build_prompt, is_declining
from app.answering.words import content_terms
from app.costs.prices import Payer
from app.embedding.base import QueryEmbedding
from app.errors import GenerationUnavailable, Overloaded
from app.llm.base import Admission, ChatModel, Completion, GenerationEvent, Queued
from app.search.base import Hit, SearchResult
from app.telemetry import stage

DECLINED = "The documents do not hold an answer to this question."

REFUSAL_SECONDS = 0.25
"""How long the sources are held back for a model that refuses at once: such a refusal can still
be a reply of its own, with a status, instead of the end of a reply that had begun."""

COMPLETE = "stop"
"""Why a model stopped that had said all it had to say."""

BUSY = (
    "Every model server was busy, so this answer is the documents' own sentences, word for word. "
    "Ask again later for a written one."
)

Generated = AsyncGenerator[GenerationEvent]


class GroundedWriter:
    """Implements Writer. Holds no database connection while a model generates."""

    def __init__(self, query_embedder: QueryEmbedding) -> None:
        self._embedder = query_embedder

    async def write(self, caller: Caller, brief: Brief) -> AsyncGenerator[AnswerEvent]:
        if brief.model is None:
            events = self._extract(brief)
        else:
            events = self._generate_or_quote(brief.model, brief, _admission(caller, brief.question))
        async with aclosing(events):
            async for event in events:
                yield event

    def _embedder_of(self, brief: Brief) -> QueryEmbedding:
        """The model of the query's vector: no other's can be compared with it."""
        return brief.result.embedder or self._embedder

    # --- the passages' own words -----------------------------------------------------------------

    async def _extract(self, brief: Brief) -> AsyncGenerator[AnswerEvent]:
        hits = brief.result.hits
        candidates = find_candidates(hits)
        if not candidates:
            for event in declining(brief):
                yield event
            return
        with stage("chat", "extract"):
            chosen = await self._best(brief, candidates)
        yield SourcesFound(hits)
        grounding = Grounding(brief.question.text, hits, self._embedder_of(brief))
        text = ""
        for candidate in chosen:
            marker = candidate.place + 1
            shown = written(candidate.piece, marker, after=text)
            text += shown
            yield TextDelta(shown)
            for citation in grounding.add(
                candidate.piece.reading,
                (marker,),
                supported=True,
                quotes=[(marker, candidate.piece.start, candidate.piece.end)],
            ):
                yield CitationFound(citation)
        yield Finished(
            Answer(
                text=text,
                citations=grounding.citations,
                sentences=grounding.sentences,
                grounded=True,
                mode="extractive",
                model=None,
                cache=uncached(brief.result),
                notice=brief.notice,
            )
        )

    async def _best(self, brief: Brief, candidates: Sequence[Candidate]) -> list[Candidate]:
        terms = content_terms(brief.query)
        embedded = shortlist(terms, candidates)
        vectors = await self._embedder_of(brief).embed(
            [candidate.embedded_text for candidate in embedded], "document"
        )
        similarities: list[float] = (vectors @ np.asarray(brief.result.query_vector)).tolist()
        return choose(terms, embedded, similarities)

    async def _generate_or_quote(
        self, model: ChatModel, brief: Brief, admission: Admission
    ) -> AsyncGenerator[AnswerEvent]:
        """A model's words, or where the collections allow it quotes while no server is free."""
        shown: Sequence[Hit] | None = None
        try:
            async with aclosing(self._generate(model, brief, admission)) as events:
                async for event in events:
                    if isinstance(event, SourcesFound):
                        shown = event.hits
                    yield event
            return
        except Overloaded:
            # Raised before the first text only.
            if not brief.result.quotes_when_busy:
                raise
        result = brief.result if shown is None else replace(brief.result, hits=shown)
        async with aclosing(self._extract(replace(brief, result=result, notice=BUSY))) as events:
            async for event in events:
                if isinstance(event, Finished):
                    # Not what the question asked for: nobody is to be given it later.
                    event = Finished(replace(event.answer, is_complete=False))
                if shown is None or not isinstance(event, SourcesFound):
                    yield event

    # --- a model's words -------------------------------------------------------------------------

    async def _generate(
        self, model: ChatModel, brief: Brief, admission: Admission
    ) -> AsyncGenerator[AnswerEvent]:
        question, result = brief.question, brief.result
        prompt = build_prompt(
            question.text, question.history, result.hits, brief.options, question.prompt_version
        )
        hits = result.hits[: prompt.sources_count]
        draft = Draft(len(hits))
        grounding = Grounding(question.text, hits, self._embedder_of(brief))
        completion: Completion | None = None
        with stage("chat", "generate"):
            async with (
                aclosing(model.stream(prompt.messages, brief.options, admission)) as generated,
                aclosing(_after_sources(hits, generated)) as events,
            ):
                async for event in events:
                    if isinstance(event, SourcesFound | Queued):
                        yield event
                        continue
                    if isinstance(event, Completion):
                        completion = event
                        shown, claims = draft.finish()
                    else:
                        shown, claims = draft.add(event.text)
                    if shown:
                        yield TextDelta(shown)
                    for claim in claims:
                        for citation in await grounding.check(claim):
                            yield CitationFound(citation)
        if completion is None or not draft.text:
            raise GenerationUnavailable("The model gave an empty answer.")
        yield Finished(_generated(brief, draft.text, grounding, completion))


def declining(brief: Brief) -> Sequence[AnswerEvent]:
    """All events of an answer that says that there is none."""
    answer = Answer(
        text=DECLINED,
        citations=[],
        sentences=[],
        grounded=False,
        mode="declined",
        model=None,
        cache=uncached(brief.result),
        notice=brief.notice,
    )
    return SourcesFound(()), TextDelta(DECLINED), Finished(answer)


def uncached(result: SearchResult) -> dict[str, str]:
    return {**result.cache, "answer": "off"}


def _generated(brief: Brief, text: str, grounding: Grounding, completion: Completion) -> Answer:
    declines = is_declining(text)
    answer = Answer(
        text=text,
        citations=[] if declines else grounding.citations,
        sentences=[] if declines else grounding.sentences,
        grounded=not declines and grounding.is_grounded,
        mode="declined" if declines else "generated",
        model=completion.model,
        cache=uncached(brief.result),
        usage=Usage(
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
            cached_tokens=completion.cached_tokens,
            cost=completion.cost,
        ),
        notice=brief.notice,
        is_complete=completion.reason == COMPLETE and not completion.tried,
        tried=completion.tried,
    )
    if completion.reason != "length":
        return answer
    limit = (
        f"The answer was cut off at {brief.options.max_tokens} tokens. "
        "FOOTNOTE_GENERATION_MAX_TOKENS sets the limit."
    )
    return replace(answer, notice=" ".join(filter(None, [brief.notice, limit])))


def _admission(caller: Caller, question: Question) -> Admission:
    return Admission(
        lane=question.lane,
        wait_seconds=question.wait_seconds,
        owner=str(caller.key_id or ""),
        payer=Payer(caller.tenant_id, caller.key_id, question.collections),
    )


async def _after_sources(
    hits: Sequence[Hit], generated: Generated
) -> AsyncGenerator[SourcesFound | GenerationEvent]:
    """The sources, then what the model says; only the error when the model refuses at once."""
    upcoming = asyncio.ensure_future(anext(generated))
    try:
        await asyncio.wait({upcoming}, timeout=REFUSAL_SECONDS)
        if upcoming.done():
            upcoming.result()
        yield SourcesFound(hits)
        yield await upcoming
    finally:
        upcoming.cancel()
        await asyncio.wait({upcoming})
    async for event in generated:
        yield event
