"""Decides how a question is answered: by a model, from the passages' own words, or not at all."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np

from app.access import Caller
from app.answering.base import (
    Answer,
    AnswerEvent,
    CitationFound,
    Finished,
    Question,
    SourcesFound,
    TextDelta,
    Usage,
)
from app.answering.citations import Draft
from app.answering.extractive import Candidate, choose, find_candidates, shortlist, written
from app.answering.followups import retrieval_query
from app.answering.grounding import Grounding
from app.answering.prompts import build_prompt, is_declining
from app.answering.relevance import LEAST_TO_EXTRACT, LEAST_TO_GENERATE, relevance
from app.answering.words import content_terms
from app.config import Settings
from app.costs.prices import Payer
from app.embedding.query import QueryEmbedder
from app.errors import GenerationUnavailable, InvalidInput
from app.llm.base import Admission, ChatModel, Completion, GenerationEvent, Queued
from app.llm.registry import generation_options
from app.search.base import Hit, Searcher, SearchRequest, SearchResult
from app.telemetry import ANSWERS, stage

AUTO = "auto"
EXTRACTIVE = "extractive"
"""As a model's name it asks for the passages' own sentences."""

DECLINED = "The documents do not hold an answer to this question."
NO_MODEL = (
    "No language model is configured, so answers are the documents' own sentences, word for word. "
    "Set FOOTNOTE_OLLAMA_URLS to get written answers."
)

REFUSAL_SECONDS = 0.25
"""How long the sources are held back for a model that refuses at once: such a refusal can still
be a reply of its own, with a status, instead of the end of a reply that had begun."""

Generated = AsyncGenerator[GenerationEvent]


@dataclass(frozen=True, slots=True)
class _Found:
    """A question, what was searched for it, and what that found."""

    caller: Caller
    question: Question
    query: str
    result: SearchResult

    @property
    def payer(self) -> Payer:
        return Payer(self.caller.tenant_id, self.caller.key_id, self.question.collections)


class GroundedAnswerer:
    """Implements Answerer. Holds no database connection while a model generates."""

    def __init__(
        self,
        searcher: Searcher,
        query_embedder: QueryEmbedder,
        chat_model: ChatModel | None,
        settings: Settings,
    ) -> None:
        self._searcher = searcher
        self._embedder = query_embedder
        self._chat_model = chat_model
        self._passages_count = settings.answer_passages
        self._options = generation_options(settings)

    async def answer(self, caller: Caller, question: Question) -> AsyncGenerator[AnswerEvent]:
        model = self._model_for(question)
        query = retrieval_query(question.text, question.history)
        with stage("chat", "search"):
            result = await self._searcher.search(
                caller,
                SearchRequest(
                    query=query,
                    collections=question.collections,
                    limit=question.retrieval.passages_count or self._passages_count,
                    mode=question.retrieval.mode,
                    rerank=question.retrieval.rerank,
                    filters=question.filters,
                ),
            )
        found = _Found(caller, question, query, result)
        least = LEAST_TO_EXTRACT if model is None else LEAST_TO_GENERATE
        if relevance(question.text, query, result) < least:
            events = self._decline(found)
        elif model is None:
            events = self._extract(found)
        else:
            events = self._generate(model, found)
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Finished):
                    ANSWERS.labels(event.answer.mode).inc()
                yield event

    def _model_for(self, question: Question) -> ChatModel | None:
        """The model that the question asks for; None for the passages' own words."""
        if question.model == EXTRACTIVE:
            return None
        if question.model == AUTO or (
            self._chat_model is not None and question.model == self._chat_model.name
        ):
            return self._chat_model
        known = [AUTO, EXTRACTIVE, *([self._chat_model.name] if self._chat_model else [])]
        raise InvalidInput(
            f"There is no model {question.model!r} here.",
            hint=f"Leave `model` out, or use one of: {', '.join(known)}.",
        )

    # --- nothing fits ----------------------------------------------------------------------------

    async def _decline(self, found: _Found) -> AsyncGenerator[AnswerEvent]:
        yield SourcesFound(())
        yield TextDelta(DECLINED)
        yield Finished(self._extracted(found, DECLINED, None))

    # --- the passages' own words -----------------------------------------------------------------

    async def _extract(self, found: _Found) -> AsyncGenerator[AnswerEvent]:
        hits = found.result.hits
        candidates = find_candidates(hits)
        if not candidates:
            async with aclosing(self._decline(found)) as declining:
                async for event in declining:
                    yield event
            return
        with stage("chat", "extract"):
            chosen = await self._best(found, candidates)
        yield SourcesFound(hits)
        grounding = Grounding(found.question.text, hits, self._embedder_of(found))
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
        yield Finished(self._extracted(found, text, grounding))

    def _embedder_of(self, found: _Found) -> QueryEmbedder:
        """The model of the query's vector: no other's can be compared with it."""
        return found.result.embedder or self._embedder

    async def _best(self, found: _Found, candidates: Sequence[Candidate]) -> list[Candidate]:
        terms = content_terms(found.query)
        embedded = shortlist(terms, candidates)
        vectors = await self._embedder_of(found).embed(
            [candidate.embedded_text for candidate in embedded], "document"
        )
        similarities: list[float] = (vectors @ np.asarray(found.result.query_vector)).tolist()
        return choose(terms, embedded, similarities)

    # --- a model's words -------------------------------------------------------------------------

    async def _generate(self, model: ChatModel, found: _Found) -> AsyncGenerator[AnswerEvent]:
        question = found.question
        prompt = build_prompt(
            question.text,
            question.history,
            found.result.hits,
            self._options,
            question.prompt_version,
        )
        hits = found.result.hits[: prompt.sources_count]
        draft = Draft(len(hits))
        grounding = Grounding(question.text, hits, self._embedder_of(found))
        completion: Completion | None = None
        with stage("chat", "generate"):
            async with (
                aclosing(
                    model.stream(prompt.messages, self._options, Admission(payer=found.payer))
                ) as generated,
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
        yield Finished(self._generated(found, draft.text, grounding, completion))

    # --- the whole answer ------------------------------------------------------------------------

    def _generated(
        self, found: _Found, text: str, grounding: Grounding, completion: Completion
    ) -> Answer:
        declines = is_declining(text)
        notice = None
        if completion.reason == "length":
            notice = (
                f"The answer was cut off at {self._options.max_tokens} tokens. "
                "FOOTNOTE_GENERATION_MAX_TOKENS sets the limit."
            )
        return Answer(
            text=text,
            citations=[] if declines else grounding.citations,
            sentences=[] if declines else grounding.sentences,
            grounded=not declines and grounding.is_grounded,
            mode="declined" if declines else "generated",
            model=completion.model,
            cache=_cache(found.result),
            usage=Usage(
                prompt_tokens=completion.prompt_tokens,
                completion_tokens=completion.completion_tokens,
                cached_tokens=completion.cached_tokens,
                cost=completion.cost,
            ),
            notice=notice,
        )

    def _extracted(self, found: _Found, text: str, grounding: Grounding | None) -> Answer:
        """Without a grounding, the answer declines."""
        return Answer(
            text=text,
            citations=grounding.citations if grounding else [],
            sentences=grounding.sentences if grounding else [],
            grounded=grounding is not None,
            mode="extractive" if grounding else "declined",
            model=None,
            cache=_cache(found.result),
            notice=NO_MODEL if self._chat_model is None else None,
        )


def _cache(result: SearchResult) -> dict[str, str]:
    return {**result.cache, "answer": "off"}


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
