"""Conversations belong to who began them, and hold whole turns or nothing."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from psycopg.errors import ForeignKeyViolation
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.access import LOCAL_OWNER, Caller
from app.config import Settings
from app.conversations import memory as module
from app.conversations.memory import Memory, bounded_history
from app.db.models import ApiKey, Conversation, ConversationMessage, Feedback, Tenant
from app.db.session import Sessions, open_sessions
from app.db.statements import Statements
from app.errors import Conflict, InvalidInput, NotFound
from app.llm.base import Message


@pytest.fixture
def sessions(engine: AsyncEngine) -> Sessions:
    return open_sessions(engine)


@pytest.fixture
async def statements(settings: Settings, database_url: str) -> AsyncIterator[Statements]:
    opened = Statements(settings, database_url)
    yield opened
    await opened.close()


@pytest.fixture
def memory(sessions: Sessions, statements: Statements) -> Memory:
    return Memory(sessions, statements, history_turns=3, history_chars=2000)


async def add_key(sessions: Sessions, tenant_id: int = 1) -> Caller:
    """A caller with a key of its own."""
    key_id = uuid4()
    async with sessions.begin() as session:
        if await session.get(Tenant, tenant_id) is None:
            session.add(Tenant(id=tenant_id, name=f"tenant {tenant_id}"))
            await session.flush()
        session.add(
            ApiKey(
                id=key_id,
                tenant_id=tenant_id,
                name="test",
                prefix="fn_",
                key_hash=key_id.bytes * 2,
                scopes=["read"],
            )
        )
    return replace(LOCAL_OWNER, tenant_id=tenant_id, key_id=key_id)


async def say(
    memory: Memory, caller: Caller, question: str, conversation_id: UUID | None = None
) -> tuple[UUID, UUID]:
    """Ids of the conversation and of the answer."""
    conversation = await memory.open(caller, conversation_id)
    turn = await memory.append(
        caller,
        conversation,
        question=question,
        answer_text=f"Answer to {question}",
        answer={"answer": f"Answer to {question}", "citations": []},
    )
    return turn.conversation_id, turn.message_id


async def count(sessions: Sessions, model: type) -> int:
    async with sessions() as session:
        return await session.scalar(select(func.count()).select_from(model)) or 0


async def test_a_conversation_is_stored_with_its_first_turn(
    memory: Memory, sessions: Sessions
) -> None:
    conversation = await memory.open(LOCAL_OWNER)
    assert conversation.is_new
    assert conversation.history == ()
    assert await count(sessions, Conversation) == 0
    turn = await memory.append(
        LOCAL_OWNER, conversation, question="Who?", answer_text="Ann.", answer={"answer": "Ann."}
    )
    record = await memory.get(LOCAL_OWNER, turn.conversation_id)
    assert record.id == conversation.id
    assert [(each.role, each.content, each.answer) for each in record.messages] == [
        ("user", "Who?", None),
        ("assistant", "Ann.", {"answer": "Ann."}),
    ]
    assert record.messages[1].id == turn.message_id


async def test_the_next_turn_sees_the_ones_before_in_order(memory: Memory) -> None:
    conversation_id, _ = await say(memory, LOCAL_OWNER, "first")
    await say(memory, LOCAL_OWNER, "second", conversation_id)
    continued = await memory.open(LOCAL_OWNER, conversation_id)
    assert not continued.is_new
    assert continued.history == (
        Message("user", "first"),
        Message("assistant", "Answer to first"),
        Message("user", "second"),
        Message("assistant", "Answer to second"),
    )


async def test_only_the_latest_turns_are_seen(memory: Memory) -> None:
    conversation_id, _ = await say(memory, LOCAL_OWNER, "0")
    for number in range(1, 5):
        await say(memory, LOCAL_OWNER, str(number), conversation_id)
    history = (await memory.open(LOCAL_OWNER, conversation_id)).history
    assert [each.content for each in history if each.role == "user"] == ["2", "3", "4"]


async def test_two_turns_at_once_do_not_mix(memory: Memory) -> None:
    conversation_id, _ = await say(memory, LOCAL_OWNER, "first")
    await asyncio.gather(
        *(say(memory, LOCAL_OWNER, str(number), conversation_id) for number in range(6))
    )
    messages = (await memory.get(LOCAL_OWNER, conversation_id)).messages
    assert len(messages) == 14
    for question, answer in zip(messages[::2], messages[1::2], strict=True):
        assert answer.content == f"Answer to {question.content}"


async def test_a_foreign_conversation_does_not_exist(memory: Memory, sessions: Sessions) -> None:
    first, second = await add_key(sessions), await add_key(sessions)
    elsewhere = await add_key(sessions, tenant_id=2)
    conversation_id, message_id = await say(memory, first, "mine")
    opened = await memory.open(first, conversation_id)
    for stranger in (second, elsewhere, LOCAL_OWNER):
        for attempt in (
            memory.open(stranger, conversation_id),
            memory.get(stranger, conversation_id),
            memory.delete(stranger, conversation_id),
            memory.append(stranger, opened, question="", answer_text="", answer={}),
            memory.give_feedback(stranger, message_id, 1),
        ):
            with pytest.raises(NotFound):
                await attempt
    assert len((await memory.get(first, conversation_id)).messages) == 2
    assert await count(sessions, Feedback) == 0


async def test_what_was_never_there_is_not_found(memory: Memory) -> None:
    for attempt in (
        memory.open(LOCAL_OWNER, uuid4()),
        memory.get(LOCAL_OWNER, uuid4()),
        memory.delete(LOCAL_OWNER, uuid4()),
        memory.give_feedback(LOCAL_OWNER, uuid4(), 1),
    ):
        with pytest.raises(NotFound):
            await attempt


async def test_deleting_takes_messages_and_feedback_along(
    memory: Memory, sessions: Sessions
) -> None:
    conversation_id, message_id = await say(memory, LOCAL_OWNER, "one")
    kept_id, _ = await say(memory, LOCAL_OWNER, "another")
    await memory.give_feedback(LOCAL_OWNER, message_id, 1)
    opened = await memory.open(LOCAL_OWNER, conversation_id)
    assert await memory.delete(LOCAL_OWNER, conversation_id) == 2
    with pytest.raises(NotFound):
        await memory.get(LOCAL_OWNER, conversation_id)
    with pytest.raises(NotFound):
        await memory.append(LOCAL_OWNER, opened, question="late", answer_text="", answer={})
    assert await count(sessions, ConversationMessage) == 2
    assert await count(sessions, Feedback) == 0
    assert (await memory.get(LOCAL_OWNER, kept_id)).messages


async def test_a_full_conversation_takes_no_more(
    memory: Memory, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_TURNS_PER_CONVERSATION", 2)
    conversation_id, _ = await say(memory, LOCAL_OWNER, "one")
    await say(memory, LOCAL_OWNER, "two", conversation_id)
    with pytest.raises(Conflict, match="2 turns"):
        await say(memory, LOCAL_OWNER, "three", conversation_id)
    assert await count(sessions, ConversationMessage) == 4


async def test_a_turn_that_cannot_be_stored_leaves_nothing(
    memory: Memory, sessions: Sessions, engine: AsyncEngine
) -> None:
    async with engine.begin() as connection:
        await connection.execute(
            text("ALTER TABLE messages ADD CONSTRAINT sudden CHECK (role <> 'assistant')")
        )
    with pytest.raises(Exception, match="sudden"):
        await say(memory, LOCAL_OWNER, "lost")
    assert await count(sessions, Conversation) == 0
    assert await count(sessions, ConversationMessage) == 0


async def test_the_last_judgement_counts(memory: Memory, sessions: Sessions) -> None:
    _, message_id = await say(memory, LOCAL_OWNER, "one")
    await memory.give_feedback(LOCAL_OWNER, message_id, 1)
    feedback_id = await memory.give_feedback(LOCAL_OWNER, message_id, -1, "wrong year")
    async with sessions() as session:
        [kept] = (await session.scalars(select(Feedback))).all()
    assert (kept.id, kept.rating, kept.comment) == (feedback_id, -1, "wrong year")
    assert (kept.tenant_id, kept.message_id) == (LOCAL_OWNER.tenant_id, message_id)


async def test_a_question_cannot_be_judged(memory: Memory) -> None:
    conversation_id, _ = await say(memory, LOCAL_OWNER, "one")
    question = (await memory.get(LOCAL_OWNER, conversation_id)).messages[0]
    with pytest.raises(NotFound):
        await memory.give_feedback(LOCAL_OWNER, question.id, 1)


@pytest.mark.parametrize(("rating", "comment"), [(0, None), (5, None), (1, "x" * 4001)])
async def test_a_judgement_has_its_limits(memory: Memory, rating: int, comment: str | None) -> None:
    with pytest.raises(InvalidInput):
        await memory.give_feedback(LOCAL_OWNER, uuid4(), rating, comment)


def test_history_is_bounded_by_turns_and_characters() -> None:
    turns = [
        Message("user" if place % 2 == 0 else "assistant", str(place) * 10) for place in range(8)
    ]
    assert bounded_history(turns, 2, 1000) == tuple(turns[4:])
    assert bounded_history(turns, 4, 45) == tuple(turns[4:])
    assert bounded_history(turns, 4, 35) == tuple(turns[6:])
    assert bounded_history(turns, 0, 1000) == ()
    assert bounded_history(turns, 4, 0) == ()


def test_one_long_answer_does_not_push_its_question_out() -> None:
    turns = [Message("user", "Why?"), Message("assistant", "x" * 5000)]
    assert bounded_history(turns, 6, 100) == (turns[0], Message("assistant", "x" * 50))


async def test_turns_that_end_together_are_stored_each_for_itself(
    memory: Memory, sessions: Sessions
) -> None:
    """One that the database does not take fails alone; the others are in their order."""
    keyed = await add_key(sessions)
    gone = replace(LOCAL_OWNER, key_id=uuid4())
    callers = [LOCAL_OWNER, keyed, gone] * 30
    results = await asyncio.gather(
        *(say(memory, caller, f"{place}") for place, caller in enumerate(callers)),
        return_exceptions=True,
    )
    for place, (caller, result) in enumerate(zip(callers, results, strict=True)):
        if caller is gone:
            assert isinstance(result, ForeignKeyViolation)
            continue
        assert isinstance(result, tuple)
        record = await memory.get(caller, result[0])
        assert [one.role for one in record.messages] == ["user", "assistant"]
        assert [one.content for one in record.messages] == [f"{place}", f"Answer to {place}"]
        assert record.messages[1].id == result[1]
        assert record.messages[1].answer == {"answer": f"Answer to {place}", "citations": []}
    assert await count(sessions, Conversation) == 60


async def test_whoever_gives_up_leaves_the_others_their_turns(memory: Memory) -> None:
    saying = [asyncio.create_task(say(memory, LOCAL_OWNER, f"{place}")) for place in range(20)]
    await asyncio.sleep(0)
    for task in saying[::2]:
        task.cancel()
    stored = [await task for task in saying[1::2]]
    await asyncio.gather(*saying, return_exceptions=True)
    for conversation_id, _ in stored:
        assert len((await memory.get(LOCAL_OWNER, conversation_id)).messages) == 2
