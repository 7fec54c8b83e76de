"""Tenants and their API keys."""

from uuid import UUID, uuid4

from sqlalchemy import ARRAY, ForeignKey, Integer, Text, false
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, CreatedAt, Moment, Sha256


class Tenant(Base):
    """`cloud_models`: questions may go, with what was found for them, to models elsewhere."""

    __tablename__ = "tenants"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(Text, unique=True)
    cloud_models: Mapped[bool] = mapped_column(server_default=false())
    created_at: Mapped[CreatedAt]


class ApiKey(Base):
    """A key is shown once; only its SHA-256 is kept (it holds 256 random bits of its own)."""

    __tablename__ = "api_keys"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id"), index=True)
    name: Mapped[str] = mapped_column(Text)
    prefix: Mapped[str] = mapped_column(Text)
    key_hash: Mapped[Sha256] = mapped_column(unique=True)
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    collections: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    groups: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    created_at: Mapped[CreatedAt]
    expires_at: Mapped[Moment | None]
    revoked_at: Mapped[Moment | None]
    last_used_at: Mapped[Moment | None]
