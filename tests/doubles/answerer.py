"""An answerer that says what it was told to say, when it is told to."""

import asyncio
from collections.abc import AsyncGenerator
from uuid import UUID

from app.access import Caller
from app.answering.base import (
    Answer,
    AnswerEvent,
    Citation,
    CitationFound,
    Finished,
    Question,
    Sentence,
    SourcesFound,
    TextDelta,
    Usage,
)
from app.search.base import Hit

HIT = Hit(
    chunk_id=7,
    document_id=UUID(int=1),
    collection="default",
    title="Travel",
    uri="upload:///travel.md",
    text="Ada approves travel. Bob does not.",
    heading=("Travel", "Approval"),
    page=3,
    start=100,
    end=134,
    score=1.5,
    content_hash=b"\1" * 32,
    similarity=0.9,
)
CITATION = Citation(
    marker=1,
    chunk_id=HIT.chunk_id,
    document_id=HIT.document_id,
    title=HIT.title,
    uri=HIT.uri,
    page=HIT.page,
    start=100,
    end=120,
    quote="Ada approves travel.",
)
ANSWER = Answer(
    text="Ada approves travel [1].",
    citations=(CITATION,),
    sentences=(
        Sentence(text="Ada approves travel.", markers=(1,), supported=True, citations=(0,)),
    ),
    grounded=True,
    mode="generated",
    model="scripted",
    cache={"embedding": "off", "chunks": "off", "answer": "off"},
    usage=Usage(prompt_tokens=30, completion_tokens=6),
)
WHOLE = (
    SourcesFound((HIT,)),
    TextDelta("Ada approves "),
    TextDelta("travel [1]."),
    CitationFound(CITATION),
    Finished(ANSWER),
)

Step = AnswerEvent | BaseException | asyncio.Event


class ScriptedAnswerer:
    """Gives events, raises exceptions and waits for asyncio's events, in their order."""

    def __init__(self, *steps: Step) -> None:
        self.steps = steps or WHOLE
        self.questions: list[Question] = []
        self.open_count = 0
        self.closed = asyncio.Event()

    async def answer(self, caller: Caller, question: Question) -> AsyncGenerator[AnswerEvent]:
        self.questions.append(question)
        self.open_count += 1
        try:
            for step in self.steps:
                if isinstance(step, BaseException):
                    raise step
                if isinstance(step, asyncio.Event):
                    await step.wait()
                else:
                    yield step
        finally:
            self.open_count -= 1
            self.closed.set()
