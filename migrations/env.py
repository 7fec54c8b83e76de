"""Runs the migrations against the configured database.

Every migration gets a lock timeout, so that it cannot queue behind a long transaction and block
everybody behind itself; it fails instead and is run again.
"""

from typing import Any

from alembic import context
from sqlalchemy import Connection, create_engine, text

import app.db.models  # noqa: F401 - fills the metadata
from app.config import load_settings
from app.db.base import Base
from app.db.session import sqlalchemy_url
from app.errors import StartupError

LOCK_TIMEOUT: str = context.config.attributes.get("lock_timeout", "5s")


def belongs_to_us(
    _object: Any, name: str | None, kind: str, _reflected: bool, _compared: Any
) -> bool:
    """Leave procrastinate's tables and the partitions (made at run time) out of comparisons."""
    if name is None:
        return True
    if kind == "table":
        return not name.startswith(("procrastinate_", "embeddings_"))
    return True


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_object=belongs_to_us,
        transaction_per_migration=True,
    )
    connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
    connection.commit()
    with context.begin_transaction():
        context.run_migrations()


given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    url = load_settings().database_url
    if url is None:
        raise StartupError(
            "FOOTNOTE_DATABASE_URL is not set.",
            hint="Set it, or use `footnote migrate`, which knows the embedded database.",
        )
    engine = create_engine(sqlalchemy_url(url.get_secret_value()))
    with engine.connect() as opened:
        run(opened)
    engine.dispose()
