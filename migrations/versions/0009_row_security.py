"""Searches read as a role of their own, which sees the rows of one tenant only.

Each statement commits by itself: a search holds these tables in another order than this would, and
a second run of any of them does no harm. The role belongs to the server, not to the database: it
stays behind as long as another database gives it rights.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

from app.db.row_security import GUARDED, MAKE_READER, OWN_ROWS, READER, guard, unguard

revision = "0009"
down_revision = "0008"

PARTITIONS = sa.text(
    "SELECT relname FROM pg_inherits JOIN pg_class ON oid = inhrelid"
    " WHERE inhparent = 'embeddings'::regclass ORDER BY relname"
)
RELEASE = f"""
DO $release$ BEGIN
  IF to_regrole('{READER}') IS NOT NULL THEN
    DROP OWNED BY {READER};
    DROP ROLE {READER};
  END IF;
EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN
  NULL;
END $release$
"""


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for table, condition in tables().items():
            for statement in guard(table, condition):
                op.execute(statement)
        op.execute(MAKE_READER)


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for table in tables():
            for statement in unguard(table):
                op.execute(statement)
        op.execute(RELEASE)


def tables() -> dict[str, str]:
    """Conditions by table, the models' partitions among them; later tables are not there yet."""
    partitions = op.get_bind().execute(PARTITIONS).scalars()
    there = set(sa.inspect(op.get_bind()).get_table_names())
    guarded = {table: own for table, own in GUARDED.items() if table in there}
    return {**guarded, **dict.fromkeys(partitions, OWN_ROWS)}
