"""Questions and their cited answers; conversations; feedback."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from time import perf_counter
from uuid import UUID

from fastapi import APIRouter, Request, Response
from sse_starlette import ServerSentEvent

from app.access import Caller
from app.answering.base import (
    Answer,
    AnswerEvent,
    Citation,
    CitationFound,
    Finished,
    InExperiment,
    Question,
    SourcesFound,
    TextDelta,
)
from app.api.bodies import BodyRoute
from app.api.events import event, event_stream, unless_gone
from app.api.problems import DOCUMENTED
from app.api.schemas import (
    AttemptInfo,
    ChatBody,
    ChatReply,
    CitationInfo,
    ConversationInfo,
    ConversationRemoval,
    ExperimentNote,
    FeedbackBody,
    FeedbackReply,
    MessageInfo,
    QueueEvent,
    RoutingInfo,
    SentenceInfo,
    SourcesEvent,
    TokenEvent,
    UsageInfo,
)
from app.api.search import check_query, hit_info
from app.config import Settings
from app.conversations.memory import Memory, OpenConversation, bounded_history
from app.dependencies import AnswererDep, CallerDep, MemoryDep, SettingsDep
from app.llm.base import Message, Queued
from app.llm.tiers import Routing

router = APIRouter(route_class=BodyRoute, tags=["chat"], responses=DOCUMENTED)

STREAM_DOCUMENTATION = (
    "The answer; with `stream` server-sent events: `sources` (the passages), `queue` (the place in "
    "line, when every model server is busy), `token` (text), `citation`, then `done` (the whole "
    "reply). `error` (a problem) is the last event if it comes."
)


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question on its way to being an answered turn of its conversation."""

    caller: Caller
    memory: Memory
    conversation: OpenConversation
    question: str
    currency: str
    started: float = field(default_factory=perf_counter)

    async def reply(self, events: AsyncGenerator[AnswerEvent]) -> ChatReply:
        async with aclosing(events):
            async for one in events:
                if isinstance(one, Finished):
                    return await self._remember(one.answer)
        raise AssertionError("an answer ends with Finished")  # pragma: no cover

    async def stream(self, events: AsyncGenerator[AnswerEvent]) -> AsyncGenerator[ServerSentEvent]:
        async with aclosing(events):
            async for one in events:
                match one:
                    case SourcesFound():
                        yield event("sources", SourcesEvent(hits=[*map(hit_info, one.hits)]))
                    case Queued():
                        place = QueueEvent(
                            position=one.position, wait_ms=round(one.wait_seconds * 1000)
                        )
                        yield event("queue", place)
                    case TextDelta():
                        yield event("token", TokenEvent(text=one.text))
                    case CitationFound():
                        yield event("citation", _citation_info(one.citation))
                    case Finished():
                        yield event("done", await self._remember(one.answer))

    async def _remember(self, answer: Answer) -> ChatReply:
        reply = ChatReply(
            answer=answer.text,
            citations=[*map(_citation_info, answer.citations)],
            sentences=[
                SentenceInfo(
                    text=one.text,
                    markers=one.markers,
                    supported=one.supported,
                    citations=one.citations,
                )
                for one in answer.sentences
            ],
            grounded=answer.grounded,
            mode=answer.mode,
            model=answer.model,
            routing=_routing_info(answer.routing),
            notice=answer.notice,
            conversation_id=self.conversation.id,
            message_id=None,
            cache=dict(answer.cache),
            paraphrase_of=answer.paraphrase_of,
            usage=UsageInfo(
                prompt_tokens=answer.usage.prompt_tokens,
                completion_tokens=answer.usage.completion_tokens,
                cached_tokens=answer.usage.cached_tokens,
                cost=answer.usage.cost,
                saved_prompt_tokens=answer.saved.prompt_tokens,
                saved_completion_tokens=answer.saved.completion_tokens,
                saved_cost=answer.saved.cost,
                currency=self.currency,
            ),
            experiment=None if answer.experiment is None else _note(answer.experiment),
            took_ms=round((perf_counter() - self.started) * 1000, 1),
        )
        turn = await self.memory.append(
            self.caller,
            self.conversation,
            question=self.question,
            answer_text=answer.text,
            answer=reply.model_dump(mode="json", exclude={"message_id"}),
        )
        return reply.model_copy(update={"message_id": turn.message_id})


@router.post(
    "/api/chat",
    response_model=ChatReply,
    responses={200: {"description": STREAM_DOCUMENTATION, "content": {"text/event-stream": {}}}},
)
async def chat(
    body: ChatBody,
    request: Request,
    caller: CallerDep,
    answerer: AnswererDep,
    memory: MemoryDep,
    settings: SettingsDep,
) -> Response:
    """An answer from the documents, each sentence tied to the passage it came from."""
    text, history = _question_and_history(body, settings)
    check_query("question" if body.question else "messages", text, settings)
    conversation = await memory.open(caller, body.conversation_id)
    exchange = Exchange(caller, memory, conversation, text, settings.currency)
    events = answerer.answer(
        caller,
        Question(
            text=text,
            collections=body.names,
            history=history or conversation.history,
            model=body.model,
            tier=body.tier,
            filters=body.filters,
            lane=body.lane,
            wait_seconds=None if body.max_wait_ms is None else body.max_wait_ms / 1000,
        ),
    )
    if body.stream:
        return await event_stream(
            request, exchange.stream(events), grace_seconds=settings.shutdown_grace_seconds
        )
    reply = await unless_gone(request, exchange.reply(events))
    # As it is: what this module made needs no second validation.
    return Response(reply.model_dump_json(), media_type="application/json")


@router.get("/api/conversations/{conversation_id}")
async def read_conversation(
    conversation_id: UUID, caller: CallerDep, memory: MemoryDep
) -> ConversationInfo:
    record = await memory.get(caller, conversation_id)
    return ConversationInfo(
        id=record.id,
        created_at=record.created_at,
        messages=[
            MessageInfo(
                id=one.id,
                role=one.role,
                content=one.content,
                answer=None if one.answer is None else dict(one.answer),
                created_at=one.created_at,
            )
            for one in record.messages
        ],
    )


@router.delete("/api/conversations/{conversation_id}")
async def delete_conversation(
    conversation_id: UUID, caller: CallerDep, memory: MemoryDep
) -> ConversationRemoval:
    return ConversationRemoval(messages=await memory.delete(caller, conversation_id))


@router.post("/api/feedback", status_code=201)
async def give_feedback(body: FeedbackBody, caller: CallerDep, memory: MemoryDep) -> FeedbackReply:
    """Judge an answer by its `message_id`; a later judgement replaces an earlier one."""
    feedback_id = await memory.give_feedback(caller, body.message_id, body.rating, body.comment)
    return FeedbackReply(id=feedback_id)


def _question_and_history(body: ChatBody, settings: Settings) -> tuple[str, tuple[Message, ...]]:
    if body.messages is None:
        return body.question or "", ()
    *earlier, last = [Message(role=one.role, content=one.content) for one in body.messages]
    history = bounded_history(earlier, settings.history_turns, settings.history_chars)
    return last.content, history


def _note(experiment: InExperiment) -> ExperimentNote:
    return ExperimentNote(
        id=experiment.id, name=experiment.name, arm=experiment.arm, place=experiment.place
    )


def _routing_info(routing: Routing | None) -> RoutingInfo | None:
    if routing is None:
        return None
    return RoutingInfo(
        tier=routing.tier,
        model=routing.model,
        reason=routing.reason,
        tried=[AttemptInfo(model=one.model, reason=one.reason) for one in routing.tried],
    )


def _citation_info(citation: Citation) -> CitationInfo:
    return CitationInfo(
        marker=citation.marker,
        chunk_id=citation.chunk_id,
        document_id=citation.document_id,
        title=citation.title,
        uri=citation.uri,
        page=citation.page,
        start=citation.start,
        end=citation.end,
        quote=citation.quote,
    )
