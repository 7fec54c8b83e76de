"""Decides how a question is answered: by a model, from the passages' own words, or not at all."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from app.access import Caller
from app.answering.base import AnswerEvent, Brief, Finished, Question, Writer
from app.answering.followups import retrieval_query
from app.answering.relevance import LEAST_TO_EXTRACT, LEAST_TO_GENERATE, relevance
from app.answering.writing import declining
from app.config import Settings
from app.errors import InvalidInput
from app.llm.base import ChatModel
from app.llm.registry import generation_options
from app.search.base import Searcher, SearchRequest
from app.telemetry import ANSWERS, stage

AUTO = "auto"
EXTRACTIVE = "extractive"
"""As a model's name it asks for the passages' own sentences."""

NO_MODEL = (
    "No language model is configured, so answers are the documents' own sentences, word for word. "
    "Set FOOTNOTE_OLLAMA_URLS to get written answers."
)


class GroundedAnswerer:
    """Implements Answerer: searches, decides who answers, and leaves the words to the writer."""

    def __init__(
        self,
        searcher: Searcher,
        writer: Writer,
        chat_model: ChatModel | None,
        settings: Settings,
    ) -> None:
        self._searcher = searcher
        self._writer = writer
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
        notice = NO_MODEL if self._chat_model is None else None
        brief = Brief(question, query, result, model, self._options, notice)
        least = LEAST_TO_EXTRACT if model is None else LEAST_TO_GENERATE
        if relevance(question.text, query, result) < least:
            for event in declining(brief):
                yield _counted(event)
            return
        async with aclosing(self._writer.write(caller, brief)) as events:
            async for event in events:
                yield _counted(event)

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


def _counted(event: AnswerEvent) -> AnswerEvent:
    if isinstance(event, Finished):
        ANSWERS.labels(event.answer.mode).inc()
    return event
