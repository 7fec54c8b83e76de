"""Whole answers: searched, written by a model over HTTP or taken from the passages, checked."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from app.access import LOCAL_OWNER
from app.answering.answerer import GroundedAnswerer
from app.answering.base import (
    Answer,
    AnswerEvent,
    CitationFound,
    Finished,
    Question,
    Retrieval,
    SourcesFound,
    TextDelta,
)
from app.answering.grounding import Grounding
from app.answering.prompts import BRIEF_RULES, NOT_IN_SOURCES
from app.answering.writing import DECLINED, GroundedWriter
from app.config import Settings
from app.embedding.query import QueryEmbedder
from app.errors import (
    EmbeddingUnavailable,
    GenerationInterrupted,
    GenerationUnavailable,
    InvalidInput,
    Overloaded,
)
from app.llm.base import Admission, GenerationEvent, GenerationOptions, Message
from app.llm.pool import GenerationPool
from app.llm.registry import open_chat_model
from app.llm.tiers import NO_MODEL
from tests.doubles.catalogue import choice_of
from tests.doubles.ollama import OllamaDouble
from tests.doubles.searcher import Shelf
from tests.test_answering_extractive import hit
from tests.test_ollama import MODEL, eventually

TRAVEL = (
    "Business travel must be approved by the team lead before it is booked. "
    "The daily allowance for meals is 45 euros. Receipts are not needed below 20 euros."
)
LEAVE = (
    "Every employee has 30 days of paid vacation each year. "
    "Up to 5 unused days may be carried over until the end of March."
)
LAPTOPS = "Laptops are replaced every four years. Old laptops must be returned to the IT desk."
ASKED = "Who has to approve business travel?"


@pytest.fixture
async def query_embedder(embedder: Any) -> AsyncIterator[QueryEmbedder]:
    opened = QueryEmbedder(embedder, threads=1, waiters=50)
    yield opened
    opened.close()


@pytest.fixture
def shelf(query_embedder: QueryEmbedder) -> Shelf:
    filled = Shelf(query_embedder)
    filled.add("Travel policy", TRAVEL, preface="# Travel policy\n\n")
    filled.add("Vacation", LEAVE, preface="# Vacation\n\nWho works here may rest.\n\n")
    filled.add("Equipment", LAPTOPS)
    return filled


@pytest.fixture
def extractive(shelf: Shelf, settings: Settings) -> GroundedAnswerer:
    return GroundedAnswerer(
        shelf, GroundedWriter(shelf.embedder), choice_of(None, settings), settings
    )


@pytest.fixture
async def pool(double: OllamaDouble, settings: Settings) -> AsyncIterator[GenerationPool]:
    update = {
        "ollama_urls": (double.url,),
        "generation_first_token_timeout_seconds": 2.0,
        "generation_stall_timeout_seconds": 0.5,
        "generation_queue_size": 0,
    }
    opened = open_chat_model(settings.model_copy(update=update))
    assert opened is not None
    yield opened
    await opened.close()


@pytest.fixture
def generated(shelf: Shelf, pool: GenerationPool, settings: Settings) -> GroundedAnswerer:
    return GroundedAnswerer(
        shelf, GroundedWriter(shelf.embedder), choice_of(pool, settings), settings
    )


async def events_of(answerer: GroundedAnswerer, question: Question | str) -> list[AnswerEvent]:
    if isinstance(question, str):
        question = Question(question, ("default",))
    async with aclosing(answerer.answer(LOCAL_OWNER, question)) as events:
        return [event async for event in events]


async def ask(answerer: GroundedAnswerer, question: Question | str) -> Answer:
    """The answer, after checking what is true of every stream of events."""
    first, *middle, last = await events_of(answerer, question)
    assert isinstance(first, SourcesFound)
    assert isinstance(last, Finished)
    answer = last.answer
    assert "".join(each.text for each in middle if isinstance(each, TextDelta)) == answer.text
    found = [each.citation for each in middle if isinstance(each, CitationFound)]
    assert answer.mode == "declined" or found == list(answer.citations)
    for citation in answer.citations:
        hit = first.hits[citation.marker - 1]
        assert citation.chunk_id == hit.chunk_id
        assert hit.start <= citation.start < citation.end <= hit.end
    for sentence in answer.sentences:
        assert {answer.citations[place].marker for place in sentence.citations} <= set(
            sentence.markers
        )
    return answer


# --- without a model -------------------------------------------------------------------------------


async def test_without_a_model_the_best_sentence_is_quoted_and_that_is_said(
    extractive: GroundedAnswerer, shelf: Shelf
) -> None:
    answer = await ask(extractive, ASKED)
    assert (answer.mode, answer.grounded, answer.model) == ("extractive", True, None)
    assert answer.notice == NO_MODEL
    assert answer.text.startswith(
        "Business travel must be approved by the team lead before it is booked. [1]"
    )
    citation = answer.citations[0]
    text = shelf.documents[citation.document_id]
    assert text[citation.start : citation.end] == citation.quote
    assert citation.quote in answer.text
    assert answer.cache == {"embedding": "miss", "chunks": "off", "answer": "off"}


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("How many vacation days do I get?", "30 days of paid vacation"),
        ("How often do we get new laptops?", "every four years"),
        ("What is the meal allowance?", "45 euros"),
    ],
)
async def test_each_question_finds_its_own_sentence(
    extractive: GroundedAnswerer, shelf: Shelf, question: str, expected: str
) -> None:
    answer = await ask(extractive, question)
    assert expected in answer.text
    for citation in answer.citations:
        text = shelf.documents[citation.document_id]
        assert text[citation.start : citation.end] == citation.quote


@pytest.mark.parametrize(
    "question",
    [
        "What is the boiling point of tungsten?",
        "Who won the football world cup in 1998?",
        "Explain the proof of Fermat's last theorem.",
        "asdf qwer zxcv",
    ],
)
async def test_a_question_that_the_documents_do_not_hold_is_declined(
    extractive: GroundedAnswerer, generated: GroundedAnswerer, double: OllamaDouble, question: str
) -> None:
    for answerer in (extractive, generated):
        answer = await ask(answerer, question)
        assert (answer.mode, answer.text, answer.grounded) == ("declined", DECLINED, False)
        assert (list(answer.citations), list(answer.sentences)) == ([], [])
    assert double.stats().requests == 0


async def test_nothing_found_is_declined(query_embedder: QueryEmbedder, settings: Settings) -> None:
    empty = GroundedAnswerer(
        Shelf(query_embedder), GroundedWriter(query_embedder), choice_of(None, settings), settings
    )
    assert (await ask(empty, ASKED)).mode == "declined"


# --- with a model ----------------------------------------------------------------------------------


async def test_a_model_answers_from_the_sources_and_each_sentence_is_checked(
    generated: GroundedAnswerer, shelf: Shelf, double: OllamaDouble
) -> None:
    double.set(
        answer="The team lead must approve business travel before it is booked [1]. "
        "Meals are covered with 45 euros a day [1]."
    )
    answer = await ask(generated, ASKED)
    assert (answer.mode, answer.grounded, answer.model) == ("generated", True, MODEL)
    assert answer.notice is None
    assert [each.supported for each in answer.sentences] == [True, True]
    quotes = [citation.quote for citation in answer.citations]
    assert quotes == [
        "Business travel must be approved by the team lead before it is booked.",
        "The daily allowance for meals is 45 euros.",
    ]
    for citation in answer.citations:
        text = shelf.documents[citation.document_id]
        assert text[citation.start : citation.end] == citation.quote
    request = double.stats().last_request
    assert request is not None
    read = sum(len(message["content"].split()) for message in request["messages"])
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (read, 21)


@pytest.mark.parametrize(
    "false",
    [
        "Business travel must be approved by the team lead 14 days before it is booked [1].",
        "Business travel must be approved by Angela Merkel before it is booked [1].",
        "Business travel must not be approved by the team lead before it is booked [1].",
        "Business travel must be approved by the team lead before it is booked [2].",
        "The weather in spring is usually mild and the birds return to their nests [1].",
    ],
    ids=["number", "name", "negation", "wrong source", "something else"],
)
async def test_a_sentence_that_its_source_does_not_bear_out_is_marked(
    generated: GroundedAnswerer, double: OllamaDouble, false: str
) -> None:
    double.set(answer=f"The daily allowance for meals is 45 euros [1]. {false}")
    answer = await ask(generated, ASKED)
    assert [each.supported for each in answer.sentences] == [True, False]
    assert not answer.grounded


async def test_an_invented_citation_is_dropped(
    generated: GroundedAnswerer, double: OllamaDouble
) -> None:
    double.set(
        answer="Business travel must be approved by the team lead [9]. Meals: 45 euros [1, 7]."
    )
    answer = await ask(generated, ASKED)
    assert "[9]" not in answer.text
    assert "[7]" not in answer.text
    assert {citation.marker for citation in answer.citations} == {1}
    assert answer.sentences[0].markers in ((), (1,))


async def test_the_double_quotes_what_the_prompt_holds(
    generated: GroundedAnswerer, double: OllamaDouble
) -> None:
    double.set(quoted_sources=2, invented_marker=9)
    answer = await ask(generated, ASKED)
    assert answer.text.startswith("Business travel must be approved by the team lead")
    assert [each.supported for each in answer.sentences] == [True, True, False]


async def test_a_model_that_says_so_declines(
    generated: GroundedAnswerer, double: OllamaDouble
) -> None:
    double.set(answer=NOT_IN_SOURCES)
    answer = await ask(generated, ASKED)
    assert (answer.mode, answer.text, answer.model) == ("declined", NOT_IN_SOURCES, MODEL)
    assert list(answer.sentences) == []


async def test_an_answer_cut_at_the_token_limit_says_so(
    shelf: Shelf, pool: GenerationPool, settings: Settings, double: OllamaDouble
) -> None:
    short = settings.model_copy(update={"generation_max_tokens": 5})
    double.set(answer="The team lead must approve business travel before it is booked [1].")
    answer = await ask(
        GroundedAnswerer(shelf, GroundedWriter(shelf.embedder), choice_of(pool, short), short),
        ASKED,
    )
    assert answer.text == "The team lead must approve"
    assert answer.notice is not None
    assert "5 tokens" in answer.notice


async def test_text_comes_while_the_model_still_writes(
    generated: GroundedAnswerer, double: OllamaDouble
) -> None:
    double.set(answer="Business travel must be approved by the team lead [1].", token_seconds=0.2)
    events = generated.answer(LOCAL_OWNER, Question(ASKED, ("default",)))
    async with aclosing(events):
        assert isinstance(await anext(events), SourcesFound)
        assert await anext(events) == TextDelta("Business")
        assert double.stats().completed == 0


async def test_the_sources_come_before_a_slow_model(
    generated: GroundedAnswerer, double: OllamaDouble
) -> None:
    double.set(first_token_seconds=30)
    events = generated.answer(LOCAL_OWNER, Question(ASKED, ("default",)))
    async with aclosing(events):
        first = await asyncio.wait_for(anext(events), 2.0)
        assert isinstance(first, SourcesFound)
    await eventually(lambda: double.stats().aborted == 1, within_seconds=1.0)


async def test_a_model_that_is_away_is_an_error_and_never_silently_replaced(
    generated: GroundedAnswerer, double: OllamaDouble
) -> None:
    double.set(refuses=True)
    with pytest.raises(GenerationUnavailable):
        await events_of(generated, ASKED)


async def test_a_busy_model_refuses_before_anything_is_sent(
    generated: GroundedAnswerer, double: OllamaDouble
) -> None:
    double.set(first_token_seconds=30)
    first = asyncio.create_task(ask(generated, ASKED))
    await eventually(lambda: double.stats().generating == 1)
    events = generated.answer(LOCAL_OWNER, Question(ASKED, ("default",)))
    async with aclosing(events):
        with pytest.raises(Overloaded):
            await anext(events)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


@pytest.mark.parametrize("fault", ["cut", "no_done", "error_line", "hang"])
async def test_a_stream_cut_in_the_middle_is_an_error_after_its_text(
    generated: GroundedAnswerer, double: OllamaDouble, fault: str
) -> None:
    double.set(answer="The team lead must approve it [1].", fault=fault, fault_after_tokens=3)
    seen: list[AnswerEvent] = []

    async def consume() -> None:
        async with aclosing(generated.answer(LOCAL_OWNER, Question(ASKED, ("default",)))) as events:
            async for event in events:
                seen.append(event)

    with pytest.raises(GenerationInterrupted):
        await consume()
    texts = [event.text for event in seen if isinstance(event, TextDelta)]
    assert "".join(texts) == "The team lead"
    assert not any(isinstance(event, Finished) for event in seen)


async def test_an_empty_answer_is_no_answer(
    generated: GroundedAnswerer, double: OllamaDouble
) -> None:
    double.set(answer=" ")
    with pytest.raises(GenerationUnavailable, match="empty"):
        await events_of(generated, ASKED)


async def test_a_reader_that_leaves_frees_the_model(
    generated: GroundedAnswerer, double: OllamaDouble
) -> None:
    double.set(answer="word " * 60, token_seconds=0.1)
    events = generated.answer(LOCAL_OWNER, Question(ASKED, ("default",)))
    async with aclosing(events):
        await anext(events)
        await anext(events)
    await eventually(lambda: double.stats().aborted == 1, within_seconds=1.0)


async def test_while_every_server_is_busy_a_collection_may_have_quotes_instead(
    generated: GroundedAnswerer, shelf: Shelf, double: OllamaDouble
) -> None:
    double.set(answer="word " * 60, token_seconds=0.1)
    busy = asyncio.create_task(ask(generated, ASKED))
    await eventually(lambda: double.stats().generating == 1)
    shelf.quotes_when_busy = True
    answer = await ask(generated, ASKED)
    assert (answer.mode, answer.model) == ("extractive", None)
    assert answer.citations
    assert answer.notice is not None
    assert "busy" in answer.notice
    assert not answer.is_complete
    busy.cancel()
    await asyncio.wait({busy})


async def test_a_question_says_how_it_stands_in_line_and_for_whom(
    shelf: Shelf, settings: Settings
) -> None:
    admissions: list[Admission] = []

    class Noting:
        name = MODEL

        async def digest(self) -> str | None:
            return None

        async def stream(
            self, messages: Sequence[Message], options: GenerationOptions, admission: Admission
        ) -> AsyncGenerator[GenerationEvent]:
            admissions.append(admission)
            raise Overloaded
            yield

    answerer = GroundedAnswerer(
        shelf, GroundedWriter(shelf.embedder), choice_of(Noting(), settings), settings
    )
    key = uuid4()
    caller = replace(LOCAL_OWNER, key_id=key)
    question = Question(ASKED, ("default",), lane="batch", wait_seconds=3.0)
    with pytest.raises(Overloaded):
        async for _ in answerer.answer(caller, question):
            pass
    [admission] = admissions
    assert (admission.lane, admission.wait_seconds) == ("batch", 3.0)
    assert admission.owner == str(key)


async def test_a_busy_embedding_model_does_not_break_an_answer_under_way(
    generated: GroundedAnswerer,
    double: OllamaDouble,
    query_embedder: QueryEmbedder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    double.set(answer="The team lead approves it [1]. Meals: the allowance is 45 euros [1].")
    events = generated.answer(LOCAL_OWNER, Question(ASKED, ("default",)))
    async with aclosing(events):
        await anext(events)

        async def too_busy(*_: object) -> None:
            raise EmbeddingUnavailable

        monkeypatch.setattr(query_embedder, "embed", too_busy)
        *_, last = [event async for event in events]
    assert isinstance(last, Finished)
    assert last.answer.mode == "generated"


# --- turns and choices -----------------------------------------------------------------------------


async def test_a_follow_up_is_searched_with_the_question_before_it(
    extractive: GroundedAnswerer, shelf: Shelf
) -> None:
    history = (
        Message("user", "How many vacation days do I get?"),
        Message("assistant", "30 days [1]."),
    )
    answer = await ask(
        extractive, Question("And how many of them carry over?", ("default",), history)
    )
    assert shelf.requests[-1].query == (
        "How many vacation days do I get? And how many of them carry over?"
    )
    assert "5 unused days" in answer.text


async def test_earlier_turns_reach_the_model_without_their_markers(
    generated: GroundedAnswerer, double: OllamaDouble
) -> None:
    history = (Message("user", "Is travel paid?"), Message("assistant", "It is paid [2]."))
    await ask(generated, Question(ASKED, ("default",), history))
    request = double.stats().last_request
    assert request is not None
    assert [message["role"] for message in request["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert request["messages"][2]["content"] == "It is paid."


async def test_collections_filters_and_limit_reach_the_search(
    extractive: GroundedAnswerer, shelf: Shelf, settings: Settings
) -> None:
    await ask(extractive, Question(ASKED, ("default", "more"), filters={"year": 2024}))
    request = shelf.requests[-1]
    assert request.collections == ("default", "more")
    assert request.filters == {"year": 2024}
    assert request.limit == settings.answer_passages


async def test_retrieval_and_prompt_of_a_question_reach_search_and_model(
    generated: GroundedAnswerer, shelf: Shelf, double: OllamaDouble
) -> None:
    retrieval = Retrieval(mode="vector", rerank=False, passages_count=2)
    await ask(generated, Question(ASKED, ("default",), prompt_version="2", retrieval=retrieval))
    searched = shelf.requests[-1]
    assert (searched.mode, searched.rerank, searched.limit) == ("vector", False, 2)
    request = double.stats().last_request
    assert request is not None
    assert request["messages"][0]["content"] == BRIEF_RULES


async def test_a_model_can_be_chosen_by_name(
    generated: GroundedAnswerer, extractive: GroundedAnswerer
) -> None:
    named = Question(ASKED, ("default",), model=MODEL)
    assert (await ask(generated, named)).mode == "generated"
    own_words = Question(ASKED, ("default",), model="extractive")
    chosen = await ask(generated, own_words)
    assert (chosen.mode, chosen.notice) == ("extractive", None)
    for answerer, model in ((generated, "gpt-5"), (extractive, MODEL)):
        with pytest.raises(InvalidInput, match=model) as raised:
            await ask(answerer, Question(ASKED, ("default",), model=model))
        assert "extractive" in raised.value.hint


@pytest.mark.parametrize(
    ("quote", "page"), [("Bees dance.", 4), ("Ants", 5), ("write.", 5), ("Moths sleep.", 7)]
)
async def test_a_quote_is_cited_with_the_page_that_it_begins_on(
    query_embedder: QueryEmbedder, quote: str, page: int
) -> None:
    text = "Bees dance. Ants write. Moths sleep."
    passage = replace(hit(text), page=4, page_breaks=(12, 24, 24), start=100, end=136)
    start = text.index(quote)
    grounding = Grounding("Who?", [passage], query_embedder)
    (citation,) = grounding.add(
        quote, (1,), supported=True, quotes=[(1, start, start + len(quote))]
    )
    assert (citation.quote, citation.page, citation.start) == (quote, page, 100 + start)
    assert hit(text).page_at(start) is None
