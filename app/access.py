"""Who is calling, and what they may do."""

import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Literal, get_args
from uuid import UUID

from sqlalchemy import Select, func, or_, select, update

from app.db.models import ApiKey
from app.db.session import Sessions
from app.errors import Conflict, InvalidInput, NotFound, Unauthenticated

Scope = Literal["read", "write", "admin"]
ALL_SCOPES: frozenset[Scope] = frozenset(get_args(Scope))

DEFAULT_TENANT_ID = 1

_TOKEN = re.compile(r"fn_[A-Za-z0-9_-]{43}")
_PREFIX_CHARS = len("fn_") + 8
_MAX_NAME_CHARS = 200


@dataclass(frozen=True, slots=True)
class Caller:
    """Everything that decides what a request may see; every query is scoped by one.

    `collections` is None when the key is not limited to some. `groups` is None when the caller
    may see documents of every access group (the local owner); a document without groups is for
    the whole tenant.
    """

    tenant_id: int
    scopes: frozenset[Scope]
    key_id: UUID | None = None
    collections: frozenset[str] | None = None
    groups: frozenset[str] | None = None


LOCAL_OWNER = Caller(tenant_id=DEFAULT_TENANT_ID, scopes=ALL_SCOPES)
"""The person at the machine: the command line, and a loopback service without keys."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is kept of a key: everything but the token itself.

    `prefix` is the token's beginning, enough for a person to recognise it. `collections` is None
    when the key is not limited to some, `groups` is None when it sees every access group.
    """

    id: UUID
    name: str
    prefix: str
    scopes: frozenset[Scope]
    collections: frozenset[str] | None
    groups: frozenset[str] | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class KeyRing:
    """The tenants' API keys. Only SHA-256 digests are stored; a token is shown once, at birth."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def create(
        self,
        name: str,
        *,
        scopes: Collection[str],
        collections: Collection[str] | None = None,
        groups: Collection[str] | None = (),
        expires_at: datetime | None = None,
        tenant_id: int = DEFAULT_TENANT_ID,
    ) -> tuple[KeyRecord, str]:
        """A new key and its token.

        `collections=None` does not limit it. By default it carries no access group, so it sees
        only documents that are for the whole tenant; `groups=None` lets it see every group.
        Raises InvalidInput for an unknown scope, an empty name, or an expiry without time zone.
        """
        unknown = sorted(set(scopes) - ALL_SCOPES)
        if unknown or not scopes:
            raise InvalidInput(
                f"Unknown scope: {', '.join(unknown)}." if unknown else "A key needs a scope.",
                hint="The scopes are read, write and admin.",
            )
        if not name.strip() or len(name) > _MAX_NAME_CHARS or "\0" in name:
            raise InvalidInput(f"A key's name has 1 to {_MAX_NAME_CHARS} characters.")
        if expires_at is not None and expires_at.tzinfo is None:
            raise InvalidInput("The expiry of a key needs a time zone.")
        token = f"fn_{secrets.token_urlsafe(32)}"
        key = ApiKey(
            tenant_id=tenant_id,
            name=name.strip(),
            prefix=token[:_PREFIX_CHARS],
            key_hash=_digest(token),
            scopes=sorted(set(scopes)),
            collections=None if collections is None else sorted(set(collections)),
            groups=None if groups is None else sorted(set(groups)),
            expires_at=expires_at,
        )
        async with self._sessions.begin() as session:
            session.add(key)
            await session.flush()
            await session.refresh(key)
        return _record(key), token

    async def list(self, *, tenant_id: int = DEFAULT_TENANT_ID) -> list[KeyRecord]:
        """All keys of the tenant, oldest first, revoked ones included."""
        query = (
            select(ApiKey)
            .where(ApiKey.tenant_id == tenant_id)
            .order_by(ApiKey.created_at, ApiKey.id)
        )
        async with self._sessions() as session:
            return [_record(key) for key in await session.scalars(query)]

    async def revoke(self, key: str | UUID, *, tenant_id: int = DEFAULT_TENANT_ID) -> KeyRecord:
        """Revoke the key with this id, prefix or name; it is refused from the next request on.

        Raises NotFound, or Conflict when the name belongs to several keys that still work.
        Revoking again changes nothing.
        """
        async with self._sessions.begin() as session:
            query = _by_id_prefix_or_name(key).where(ApiKey.tenant_id == tenant_id)
            found = list(await session.scalars(query.with_for_update()))
            chosen = [one for one in found if one.revoked_at is None] or found[:1]
            if not chosen:
                raise NotFound(f"There is no key {key!s}.", hint="See `footnote keys list`.")
            if len(chosen) > 1:
                raise Conflict(
                    f"{len(chosen)} keys are called {key!s}.", hint="Name it by its id or prefix."
                )
            if chosen[0].revoked_at is None:
                chosen[0].revoked_at = await session.scalar(select(func.clock_timestamp()))
            return _record(chosen[0])

    async def any_usable(self) -> bool:
        """Whether there is a key that would let anybody in."""
        query = select(ApiKey.id).where(
            ApiKey.revoked_at.is_(None),
            or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now()),
        )
        async with self._sessions() as session:
            return (await session.scalars(query.limit(1))).first() is not None

    async def authenticate(self, token: str) -> Caller:
        """The caller that the token stands for; raises Unauthenticated.

        One indexed look-up by digest, for every token of the right form, so that a key that is
        revoked is refused at once and timing tells nothing about stored keys.
        """
        if not _TOKEN.fullmatch(token):
            raise Unauthenticated("This is not a Footnote API key.")
        query = select(
            ApiKey.id,
            ApiKey.tenant_id,
            ApiKey.scopes,
            ApiKey.collections,
            ApiKey.groups,
            ApiKey.revoked_at,
            (ApiKey.expires_at <= func.now()).label("expired"),
            # A minute is exact enough, and spares a write per request.
            func.coalesce(ApiKey.last_used_at < func.now() - timedelta(minutes=1), True).label(
                "note_use"
            ),
        ).where(ApiKey.key_hash == _digest(token))
        async with self._sessions() as session:
            key = (await session.execute(query)).one_or_none()
            if key is None:
                raise Unauthenticated("This API key is not known.")
            if key.revoked_at is not None:
                raise Unauthenticated("This API key was revoked.")
            if key.expired:
                raise Unauthenticated("This API key has expired.")
            if key.note_use:
                await session.execute(
                    update(ApiKey).where(ApiKey.id == key.id).values(last_used_at=func.now())
                )
                await session.commit()
        return Caller(
            tenant_id=key.tenant_id,
            scopes=frozenset(key.scopes),
            key_id=key.id,
            collections=_optional_set(key.collections),
            groups=_optional_set(key.groups),
        )


def _digest(token: str) -> bytes:
    # Not a password: 256 random bits need no salt and no slow hash.
    return sha256(token.encode("ascii")).digest()


def _by_id_prefix_or_name(key: str | UUID) -> Select[Any]:
    query = select(ApiKey).order_by(ApiKey.created_at)
    try:
        return query.where(ApiKey.id == UUID(str(key)))
    except ValueError:
        return query.where(or_(ApiKey.prefix == key, ApiKey.name == key))


def _optional_set(values: list[str] | None) -> frozenset[str] | None:
    return None if values is None else frozenset(values)


def _record(key: ApiKey) -> KeyRecord:
    return KeyRecord(
        id=key.id,
        name=key.name,
        prefix=key.prefix,
        scopes=frozenset(scope for scope in ALL_SCOPES if scope in key.scopes),
        collections=_optional_set(key.collections),
        groups=_optional_set(key.groups),
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        last_used_at=key.last_used_at,
    )
