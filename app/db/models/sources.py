"""Places that collections are kept in step with, as somebody registered them."""

from typing import Any, Literal
from uuid import UUID, uuid4

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    Text,
    UniqueConstraint,
)
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, CreatedAt, Moment

SourceStatus = Literal["queued", "syncing", "ready", "failed", "removing"]


class RegisteredSource(Base):
    """A place on the web or in a bucket; `options` holds the patterns that choose from it.

    `status` says how its last sync ended, or how far it is. `report` is what the last completed one
    counted, `reason` why one could not be done at all. At `next_at` the next one is due, None for
    never by itself.
    """

    __tablename__ = "sources"
    __table_args__ = (
        UniqueConstraint("collection_id", "location"),
        CheckConstraint(
            "status IN ('queued', 'syncing', 'ready', 'failed', 'removing')", name="status"
        ),
        Index("ix_sources_due", "next_at", postgresql_where=sql("next_at IS NOT NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id"))
    collection_id: Mapped[int] = mapped_column(ForeignKey("collections.id", ondelete="CASCADE"))
    location: Mapped[str] = mapped_column(Text)
    options: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=sql("'{}'"))
    every_minutes: Mapped[int | None] = mapped_column(Integer)
    status: Mapped[str] = mapped_column(Text, server_default="queued")
    reason: Mapped[str | None] = mapped_column(Text)
    report: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    synced_at: Mapped[Moment | None]
    next_at: Mapped[Moment | None]
    job_id: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[CreatedAt]
