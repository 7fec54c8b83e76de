"""Decides how a question is answered: by a model, from the passages' own words, or not at all."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from app.access import Caller
from app.answering.base import AnswerEvent, Brief, Finished, ModelChoice, Question, Writer
from app.answering.followups import retrieval_query
from app.answering.relevance import LEAST_TO_EXTRACT, LEAST_TO_GENERATE, relevance
from app.answering.writing import declining
from app.config import Settings
from app.language_models import AUTO
from app.llm.tiers import Offer, Routing
from app.search.base import Searcher, SearchRequest, SearchResult
from app.telemetry import ANSWERS, stage


class GroundedAnswerer:
    """Implements Answerer: searches, decides who answers, and leaves the words to the writer."""

    def __init__(
        self, searcher: Searcher, writer: Writer, choice: ModelChoice, settings: Settings
    ) -> None:
        self._searcher = searcher
        self._writer = writer
        self._choice = choice
        self._passages_count = settings.answer_passages

    async def answer(self, caller: Caller, question: Question) -> AsyncGenerator[AnswerEvent]:
        query = retrieval_query(question.text, question.history)
        offer, result = await self._offer_and_passages(caller, question, query)
        chosen = await self._choice.chosen(offer, query, result)
        brief = Brief(question, query, result, chosen.model, chosen.options, chosen.notice)
        least = LEAST_TO_EXTRACT if chosen.model is None else LEAST_TO_GENERATE
        if relevance(question.text, query, result) < least:
            for event in declining(brief):
                yield _counted(event)
            return
        async with aclosing(self._writer.write(caller, brief)) as events:
            async for event in events:
                yield _counted(_explained(event, chosen.routing))

    async def _offer_and_passages(
        self, caller: Caller, question: Question, query: str
    ) -> tuple[Offer | None, SearchResult]:
        """What models there are is found out beside the search; a name that may be wrong, before."""
        offering = asyncio.ensure_future(self._choice.offered(caller, question))
        try:
            if question.model != AUTO or question.tier is not None:
                await offering
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
            return await offering, result
        finally:
            offering.cancel()
            # Seen, also where the search failed first.
            offering.add_done_callback(lambda done: done.cancelled() or done.exception())


def _explained(event: AnswerEvent, routing: Routing | None) -> AnswerEvent:
    """With the reason for the model that answered, and with those that could not."""
    if not isinstance(event, Finished) or routing is None or event.answer.model is None:
        return event
    routing = replace(routing, tried=(*routing.tried, *event.answer.tried))
    return Finished(replace(event.answer, routing=routing))


def _counted(event: AnswerEvent) -> AnswerEvent:
    if isinstance(event, Finished):
        ANSWERS.labels(event.answer.mode).inc()
    return event
