"""Conversations: begun, continued, read, deleted and judged, each by its owner alone.

A conversation belongs to the tenant and the key that began it; for everybody else it does not
exist. A turn (a question with its answer) is stored in one short transaction after the answer is
complete, so a generation that fails leaves nothing behind and no connection waits for a model. A
reply is complete only when its turn is stored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast
from uuid import UUID, uuid4

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.access import Caller
from app.conversations.first_turns import FirstTurn, FirstTurns
from app.db.models import Conversation, ConversationMessage, Feedback
from app.db.session import Sessions
from app.db.statements import Statements
from app.errors import Conflict, InvalidInput, NotFound
from app.llm.base import Message

MAX_TURNS_PER_CONVERSATION = 500
MAX_COMMENT_CHARS = 4000

MessageRole = Literal["user", "assistant"]


@dataclass(frozen=True, slots=True)
class OpenConversation:
    """A conversation about to get its next turn; `history` is bounded, oldest turn first.

    A new one has an id already, but is stored together with its first turn.
    """

    id: UUID
    history: tuple[Message, ...]
    is_new: bool


@dataclass(frozen=True, slots=True)
class StoredTurn:
    """`message_id` is the answer's: what feedback refers to."""

    conversation_id: UUID
    message_id: UUID


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """`answer` is the whole reply of an assistant's message, as it was sent."""

    id: UUID
    role: MessageRole
    content: str
    answer: Mapping[str, Any] | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ConversationRecord:
    id: UUID
    created_at: datetime
    messages: Sequence[StoredMessage]


class Memory:
    """`history_turns` and `history_chars` bound what a next turn gets to see of earlier ones."""

    def __init__(
        self,
        sessions: Sessions,
        statements: Statements,
        *,
        history_turns: int = 6,
        history_chars: int = 4000,
    ) -> None:
        self._sessions = sessions
        self._first_turns = FirstTurns(statements)
        self._history_turns = history_turns
        self._history_chars = history_chars

    async def open(self, caller: Caller, conversation_id: UUID | None = None) -> OpenConversation:
        """A new conversation, or the caller's own with its latest turns; else raises NotFound."""
        if conversation_id is None:
            return OpenConversation(id=uuid4(), history=(), is_new=True)
        async with self._sessions() as session:
            await _own_conversation(session, caller, conversation_id)
            latest = await session.scalars(
                select(ConversationMessage)
                .where(ConversationMessage.conversation_id == conversation_id)
                .order_by(ConversationMessage.position.desc())
                .limit(2 * self._history_turns)
            )
            messages = [
                Message(role=cast("MessageRole", row.role), content=row.content) for row in latest
            ]
        return OpenConversation(
            id=conversation_id,
            history=bounded_history(messages[::-1], self._history_turns, self._history_chars),
            is_new=False,
        )

    async def append(
        self,
        caller: Caller,
        conversation: OpenConversation,
        *,
        question: str,
        answer_text: str,
        answer: Mapping[str, Any],
    ) -> StoredTurn:
        """Store one complete turn.

        Raises NotFound when the conversation was deleted meanwhile, Conflict when it is full.
        """
        message_id = uuid4()
        if conversation.is_new:
            await self._first_turns.store(
                FirstTurn(
                    conversation_id=conversation.id,
                    tenant_id=caller.tenant_id,
                    key_id=caller.key_id,
                    question_id=uuid4(),
                    question=question,
                    answer_id=message_id,
                    answer_text=answer_text,
                    answer=answer,
                )
            )
            return StoredTurn(conversation_id=conversation.id, message_id=message_id)
        async with self._sessions.begin() as session:
            # The lock keeps the two messages of a turn together when two turns end at once.
            await _own_conversation(session, caller, conversation.id, lock=True)
            stored_count = await session.scalar(
                select(func.count()).where(ConversationMessage.conversation_id == conversation.id)
            )
            if (stored_count or 0) >= 2 * MAX_TURNS_PER_CONVERSATION:
                raise Conflict(
                    f"This conversation has {MAX_TURNS_PER_CONVERSATION} turns, the most "
                    "that one can hold.",
                    hint="Begin a new conversation: leave conversation_id out.",
                )
            session.add(
                ConversationMessage(
                    conversation_id=conversation.id, role="user", content=question, answer=None
                )
            )
            await session.flush()
            session.add(
                ConversationMessage(
                    id=message_id,
                    conversation_id=conversation.id,
                    role="assistant",
                    content=answer_text,
                    answer=dict(answer),
                )
            )
        return StoredTurn(conversation_id=conversation.id, message_id=message_id)

    async def get(self, caller: Caller, conversation_id: UUID) -> ConversationRecord:
        async with self._sessions() as session:
            conversation = await _own_conversation(session, caller, conversation_id)
            rows = await session.scalars(
                select(ConversationMessage)
                .where(ConversationMessage.conversation_id == conversation_id)
                .order_by(ConversationMessage.position)
            )
            messages = [
                StoredMessage(
                    id=row.id,
                    role=cast("MessageRole", row.role),
                    content=row.content,
                    answer=row.answer,
                    created_at=row.created_at,
                )
                for row in rows
            ]
        return ConversationRecord(
            id=conversation.id, created_at=conversation.created_at, messages=messages
        )

    async def delete(self, caller: Caller, conversation_id: UUID) -> int:
        """Remove the conversation with its messages and their feedback; how many messages."""
        async with self._sessions.begin() as session:
            await _own_conversation(session, caller, conversation_id, lock=True)
            messages_count = await session.scalar(
                select(func.count()).where(ConversationMessage.conversation_id == conversation_id)
            )
            await session.execute(delete(Conversation).where(Conversation.id == conversation_id))
        return messages_count or 0

    async def give_feedback(
        self, caller: Caller, message_id: UUID, rating: int, comment: str | None = None
    ) -> UUID:
        """Judge one of the caller's answers, −1 or 1; a later judgement replaces an earlier one.

        Gives the feedback's id. Raises NotFound for what is not an answer to this caller.
        """
        if rating not in (-1, 1):
            raise InvalidInput("`rating` must be -1 or 1.")
        if comment is not None and len(comment) > MAX_COMMENT_CHARS:
            raise InvalidInput(f"`comment` may have at most {MAX_COMMENT_CHARS} characters.")
        async with self._sessions.begin() as session:
            found = await session.scalar(
                select(ConversationMessage.id)
                .join(Conversation, Conversation.id == ConversationMessage.conversation_id)
                .where(
                    ConversationMessage.id == message_id,
                    ConversationMessage.role == "assistant",
                    Conversation.tenant_id == caller.tenant_id,
                    Conversation.key_id.is_not_distinct_from(caller.key_id),
                )
                .with_for_update(of=ConversationMessage)
            )
            if found is None:
                raise NotFound("There is no such answer.")
            await session.execute(delete(Feedback).where(Feedback.message_id == message_id))
            feedback_id = uuid4()
            session.add(
                Feedback(
                    id=feedback_id,
                    tenant_id=caller.tenant_id,
                    message_id=message_id,
                    rating=rating,
                    comment=comment,
                )
            )
        return feedback_id


def bounded_history(
    messages: Sequence[Message], turns_count: int, chars_count: int
) -> tuple[Message, ...]:
    """The latest messages that fit both bounds, beginning with a user's.

    One message gets at most half of the characters, so that the latest question and its answer
    always fit. A history that began with an answer would show a model a reply to nothing.
    """
    kept: list[Message] = []
    chars_left = chars_count
    for message in reversed(messages[-2 * turns_count :] if turns_count and chars_count else ()):
        content = message.content[: chars_count // 2]
        chars_left -= len(content)
        if chars_left < 0:
            break
        kept.append(Message(role=message.role, content=content))
    while kept and kept[-1].role != "user":
        kept.pop()
    return tuple(reversed(kept))


async def _own_conversation(
    session: AsyncSession, caller: Caller, conversation_id: UUID, *, lock: bool = False
) -> Conversation:
    query = select(Conversation).where(
        Conversation.id == conversation_id,
        Conversation.tenant_id == caller.tenant_id,
        Conversation.key_id.is_not_distinct_from(caller.key_id),
    )
    found = await session.scalar(query.with_for_update() if lock else query)
    if found is None:
        raise NotFound("There is no such conversation.")
    return found
