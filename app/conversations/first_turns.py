"""First turns of conversations, stored together when they end together.

Most conversations are one question. Each is stored when `store` returns, as it would be alone; but
those that end while others are being stored share the next statement, and so one commit.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pydantic_core import to_json

from app.db.statements import Statements
from app.errors import FootnoteError

AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class FirstTurn:
    """A conversation with its question and answer; `answer` is the whole reply."""

    conversation_id: UUID
    tenant_id: int
    key_id: UUID | None
    question_id: UUID
    question: str
    answer_id: UUID
    answer_text: str
    answer: Mapping[str, Any]


class FirstTurns:
    """Belongs to one event loop."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements
        self._waiting: list[tuple[FirstTurn, asyncio.Future[None]]] = []
        self._storing: asyncio.Task[None] | None = None

    async def store(self, turn: FirstTurn) -> None:
        """Returns when it is committed; raises what the database has against this turn."""
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, stored))
        if self._storing is None:
            self._storing = asyncio.create_task(self._store_all())
        await stored

    async def _store_all(self) -> None:
        try:
            while self._waiting:
                some, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
                await self._store(some)
        finally:
            self._storing = None
            for _, stored in self._waiting:
                stored.cancel()

    async def _store(self, some: Sequence[tuple[FirstTurn, "asyncio.Future[None]"]]) -> None:
        try:
            await self._statements.fetch(
                _STORE, {"turns": to_json([turn for turn, _ in some]).decode()}
            )
        except Exception as error:  # noqa: BLE001 - raised where it belongs
            if len(some) == 1 or isinstance(error, FootnoteError):
                for _, stored in some:
                    if not stored.done():
                        stored.set_exception(error)
                return
            # One of them is what the database does not take; the others have nothing to do with it.
            for one in some:
                await self._store([one])
        except BaseException:
            for _, stored in some:
                stored.cancel()
            raise
        else:
            for _, stored in some:
                if not stored.done():
                    stored.set_result(None)


# Done twice, the second time changes nothing. Positions are given in the order of the rows.
_STORE = """
    WITH turns AS MATERIALIZED (
      SELECT * FROM ROWS FROM (jsonb_to_recordset(%(turns)s::text::jsonb) AS (
        conversation_id uuid, tenant_id int, key_id uuid, question_id uuid, question text,
        answer_id uuid, answer_text text, answer jsonb
      )) WITH ORDINALITY AS turn (
        conversation_id, tenant_id, key_id, question_id, question,
        answer_id, answer_text, answer, place
      )
    ), begun AS (
      INSERT INTO conversations (id, tenant_id, key_id)
      SELECT conversation_id, tenant_id, key_id FROM turns
      ON CONFLICT (id) DO NOTHING
    )
    INSERT INTO messages (id, conversation_id, role, content, answer)
    SELECT message.id, conversation_id, role, content, message.answer
    FROM turns CROSS JOIN LATERAL (
      VALUES (question_id, 'user', question, NULL, 0),
        (answer_id, 'assistant', answer_text, answer, 1)
    ) AS message (id, role, content, answer, turn_place)
    ORDER BY place, turn_place
    ON CONFLICT (id) DO NOTHING
"""
