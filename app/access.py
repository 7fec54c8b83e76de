"""Who is calling, and what they may do."""

from dataclasses import dataclass
from typing import Literal
from uuid import UUID

Scope = Literal["read", "write", "admin"]
ALL_SCOPES: frozenset[Scope] = frozenset({"read", "write", "admin"})

DEFAULT_TENANT_ID = 1


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
