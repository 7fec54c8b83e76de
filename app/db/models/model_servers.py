"""What was changed by hand about the model servers, on top of the configuration."""

from sqlalchemy import CheckConstraint, Integer, Text, func
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, Moment


class ModelServerChange(Base):
    """`address` is the server's URL without credentials; `slots` None: those of the configuration."""

    __tablename__ = "model_server_changes"
    __table_args__ = (
        CheckConstraint("state IN ('serving', 'draining', 'removed')", name="state"),
        CheckConstraint("slots > 0", name="slots"),
    )

    address: Mapped[str] = mapped_column(Text, primary_key=True)
    slots: Mapped[int | None] = mapped_column(Integer)
    state: Mapped[str] = mapped_column(Text)
    changed_at: Mapped[Moment] = mapped_column(server_default=func.now(), onupdate=func.now())
