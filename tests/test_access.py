import re
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.access import ALL_SCOPES, Caller, KeyRing
from app.db.session import open_sessions
from app.errors import Conflict, InvalidInput, NotFound, Unauthenticated


@pytest.fixture
def keyring(engine: AsyncEngine) -> KeyRing:
    return KeyRing(open_sessions(engine))


async def execute(engine: AsyncEngine, statement: str, **values: object) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(statement), values)


async def test_a_token_opens_what_its_key_was_given(keyring: KeyRing) -> None:
    record, token = await keyring.create(
        "robot", scopes=["read", "write"], collections=["handbook"], groups=["sales", "board"]
    )

    caller = await keyring.authenticate(token)

    assert caller == Caller(
        tenant_id=1,
        scopes=frozenset({"read", "write"}),
        key_id=record.id,
        collections=frozenset({"handbook"}),
        groups=frozenset({"board", "sales"}),
    )


async def test_a_key_without_groups_sees_only_what_is_for_everybody(keyring: KeyRing) -> None:
    _, plain = await keyring.create("plain", scopes=["read"])
    _, every = await keyring.create("every", scopes=["read"], groups=None)

    assert (await keyring.authenticate(plain)).groups == frozenset()
    assert (await keyring.authenticate(plain)).collections is None
    assert (await keyring.authenticate(every)).groups is None


async def test_tokens_have_256_bits_and_only_their_digest_is_kept(
    keyring: KeyRing, engine: AsyncEngine
) -> None:
    record, token = await keyring.create("robot", scopes=["admin"])
    assert re.fullmatch(r"fn_[A-Za-z0-9_-]{43}", token)
    assert record.prefix == token[:11]

    async with engine.connect() as connection:
        row = (await connection.execute(text("SELECT k.*, k::text AS whole FROM api_keys k"))).one()

    assert row.key_hash == sha256(token.encode()).digest()
    assert token[11:] not in row.whole


@pytest.mark.parametrize(
    "token",
    ["", "fn_", "fn_" + "a" * 42, "fn_" + "a" * 44, "sk_" + "a" * 43, "fn_" + "é" * 43],
    ids=["empty", "bare", "short", "long", "foreign", "not ascii"],
)
async def test_what_is_no_token_is_refused(keyring: KeyRing, token: str) -> None:
    with pytest.raises(Unauthenticated, match="not a Footnote API key"):
        await keyring.authenticate(token)


async def test_unknown_revoked_and_expired_keys_are_refused_at_once(
    keyring: KeyRing, engine: AsyncEngine
) -> None:
    record, token = await keyring.create("robot", scopes=["read"])
    with pytest.raises(Unauthenticated, match="not known"):
        await keyring.authenticate("fn_" + "a" * 43)

    await execute(engine, "UPDATE api_keys SET expires_at = now() + interval '1 hour'")
    assert (await keyring.authenticate(token)).key_id == record.id
    await execute(engine, "UPDATE api_keys SET expires_at = now() - interval '1 second'")
    with pytest.raises(Unauthenticated, match="expired"):
        await keyring.authenticate(token)
    assert not await keyring.any_usable()

    await execute(engine, "UPDATE api_keys SET expires_at = NULL")
    await keyring.revoke(record.id)
    with pytest.raises(Unauthenticated, match="revoked"):
        await keyring.authenticate(token)


async def test_revoking_by_id_prefix_or_name(keyring: KeyRing) -> None:
    for way in ("id", "prefix", "name"):
        record, token = await keyring.create(f"robot {way}", scopes=["read"])
        revoked = await keyring.revoke(str(getattr(record, way)))
        assert revoked.id == record.id
        assert revoked.revoked_at is not None
        with pytest.raises(Unauthenticated):
            await keyring.authenticate(token)
        again = await keyring.revoke(record.id)
        assert again.revoked_at == revoked.revoked_at


async def test_a_name_that_two_keys_share_revokes_neither(keyring: KeyRing) -> None:
    first, token = await keyring.create("robot", scopes=["read"])
    second, _ = await keyring.create("robot", scopes=["read"])
    with pytest.raises(Conflict):
        await keyring.revoke("robot")
    assert await keyring.authenticate(token)

    await keyring.revoke(second.id)
    assert (await keyring.revoke("robot")).id == first.id


async def test_keys_of_another_tenant_do_not_exist(keyring: KeyRing, engine: AsyncEngine) -> None:
    await execute(engine, "INSERT INTO tenants (id, name) VALUES (2, 'other')")
    record, token = await keyring.create("robot", scopes=["read"], tenant_id=2)

    for key in (record.id, record.prefix, "robot", uuid4(), "nobody"):
        with pytest.raises(NotFound):
            await keyring.revoke(key)
    assert await keyring.list() == []
    assert [one.id for one in await keyring.list(tenant_id=2)] == [record.id]
    assert (await keyring.authenticate(token)).tenant_id == 2


async def test_the_list_is_in_order_and_says_when_a_key_was_used(keyring: KeyRing) -> None:
    _, token = await keyring.create("first", scopes=ALL_SCOPES)
    await keyring.create("second", scopes=["read"])
    await keyring.authenticate(token)
    used = (await keyring.list())[0].last_used_at
    await keyring.authenticate(token)

    first, second = await keyring.list()

    assert (first.name, second.name) == ("first", "second")
    assert first.scopes == ALL_SCOPES
    assert second.last_used_at is None
    # Noted to the minute, so that reading does not write every time.
    assert first.last_used_at == used is not None
    assert await keyring.any_usable()


@pytest.mark.parametrize(
    "wrong",
    [
        {"scopes": []},
        {"scopes": ["read", "everything"]},
        {"name": "  "},
        {"name": "n" * 201},
        {"name": "nul\0"},
        {"expires_at": datetime(2030, 1, 1)},
    ],
    ids=["no scope", "odd scope", "blank", "long", "nul", "no zone"],
)
async def test_a_key_that_makes_no_sense_is_not_made(
    keyring: KeyRing, wrong: dict[str, object]
) -> None:
    arguments: dict[str, object] = {"name": "robot", "scopes": ["read"], **wrong}
    with pytest.raises(InvalidInput):
        await keyring.create(**arguments)  # pyright: ignore[reportArgumentType]
    assert await keyring.list() == []


async def test_an_expiry_is_kept(keyring: KeyRing) -> None:
    expires_at = datetime.now(UTC) + timedelta(days=30)
    record, _ = await keyring.create("robot", scopes=["read"], expires_at=expires_at)
    assert (await keyring.list())[0].expires_at == record.expires_at == expires_at
