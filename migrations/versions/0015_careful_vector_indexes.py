"""Vector indexes are built more carefully; those that there are take new vectors in like that.

What is in them stays as it is linked: docs/operations.md says how they are built anew.

Revision ID: 0015
Revises: 0014
"""

from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    _build_with(256)


def downgrade() -> None:
    _build_with(128)


def _build_with(candidates: int) -> None:
    op.execute(
        rf"""
        DO $$
        DECLARE
          index regclass;
        BEGIN
          FOR index IN
            SELECT built.oid::regclass
            FROM pg_class AS built JOIN pg_am ON pg_am.oid = built.relam
            WHERE pg_am.amname = 'hnsw' AND built.relname ~ '^embeddings_m\d+_\d+_hnsw$'
              AND pg_table_is_visible(built.oid)
          LOOP
            EXECUTE format('ALTER INDEX %s SET (ef_construction = {candidates:d})', index);
          END LOOP;
        END $$
        """  # noqa: S608 - a number
    )
