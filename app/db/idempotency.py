"""The SQL of Idempotency-Keys: the first request's reply, kept for its repeats."""

from typing import Any

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import IdempotencyMismatch

KEEP_HOURS = 24


async def take_key(
    connection: AsyncConnection, tenant_id: int, key: str, request_digest: bytes
) -> dict[str, Any] | None:
    """The reply that this request got before; None when it is the first with this key.

    Waits for a request with the same key that is under way. Raises IdempotencyMismatch when the
    key was used for another request.
    """
    values = {"tenant_id": tenant_id, "key": key, "request_digest": request_digest}
    while True:
        if (await connection.execute(_TAKE, values)).scalar() is not None:
            return None
        stored = (await connection.execute(_READ, values)).one_or_none()
        if stored is not None:
            break
    if bytes(stored.request_digest) != request_digest:
        raise IdempotencyMismatch
    return stored.response


async def keep_reply(
    connection: AsyncConnection, tenant_id: int, key: str, response: dict[str, Any]
) -> None:
    await connection.execute(_KEEP, {"tenant_id": tenant_id, "key": key, "response": response})


async def forget_old_keys(connection: AsyncConnection) -> None:
    await connection.execute(_FORGET, {"hours": KEEP_HOURS})


_TAKE = text(
    """
    INSERT INTO idempotency_keys (tenant_id, key, request_digest, response)
    VALUES (:tenant_id, :key, :request_digest, '{}')
    ON CONFLICT (tenant_id, key) DO NOTHING RETURNING key
    """
)
_READ = text(
    """
    SELECT request_digest, response FROM idempotency_keys
    WHERE tenant_id = :tenant_id AND key = :key
    """
).columns(response=JSONB)
_KEEP = text(
    "UPDATE idempotency_keys SET response = :response WHERE tenant_id = :tenant_id AND key = :key"
).bindparams(bindparam("response", type_=JSONB))
_FORGET = text(
    "DELETE FROM idempotency_keys WHERE created_at < now() - make_interval(hours => :hours)"
)
