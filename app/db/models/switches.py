"""The other model of a collection: on its way to serve, or the one that served before."""

from typing import Literal
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Text
from sqlalchemy import text as sql
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, CreatedAt

SwitchStatus = Literal["preparing", "prepared", "retained", "dropping", "failed"]


class ModelSwitch(Base):
    """`model_id` is the model beside the one that serves; a collection has one such at most.

    It is `preparing` until every passage has a vector of it, then `prepared`; once it serves, the
    one before it is `retained` in its place. `activates` says that it is to serve as soon as it is
    prepared, together with all collections of the same `switch_id`; `keeps_old` that the one before
    it is retained then.

    `embedded` counts its vectors, for people. `complete_at` is the generation of the collection at
    which every passage had one, None while that was never so.
    """

    __tablename__ = "model_switches"
    __table_args__ = (
        CheckConstraint(
            "status IN ('preparing', 'prepared', 'retained', 'dropping', 'failed')", name="status"
        ),
    )

    collection_id: Mapped[int] = mapped_column(
        ForeignKey("collections.id", ondelete="CASCADE"), primary_key=True
    )
    switch_id: Mapped[UUID]
    model_id: Mapped[int] = mapped_column(ForeignKey("embedding_models.id"))
    status: Mapped[str] = mapped_column(Text, server_default="preparing")
    activates: Mapped[bool]
    keeps_old: Mapped[bool]
    embedded: Mapped[int] = mapped_column(BigInteger, server_default=sql("0"))
    complete_at: Mapped[int | None] = mapped_column(BigInteger)
    reason: Mapped[str | None] = mapped_column(Text)
    job_id: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[CreatedAt]
