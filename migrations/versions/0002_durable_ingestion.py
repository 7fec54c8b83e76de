"""What sources, progress, rebuilds, personal data and near-duplicates need.

The columns take no rewrite; the indexes are built beside the writers.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

INDEXES = {
    "ix_documents_status": "documents (collection_id, status, status_at)",
    "ix_document_versions_bands": "document_versions USING gin (bands)",
}


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.add_column("collections", sa.Column("rebuild_since", moment, nullable=True))
    op.add_column("collections", sa.Column("rebuild_digest", sa.Text(), nullable=True))
    op.add_column("documents", sa.Column("source_tag", sa.Text(), nullable=True))
    op.add_column("documents", sa.Column("progress", postgresql.JSONB(), nullable=True))
    op.add_column("documents", sa.Column("personal_data", postgresql.JSONB(), nullable=True))
    op.add_column("document_versions", sa.Column("signature", sa.LargeBinary(), nullable=True))
    op.add_column("document_versions", sa.Column("bands", sa.ARRAY(sa.Integer()), nullable=True))
    with op.get_context().autocommit_block():
        for name, definition in INDEXES.items():
            # An earlier run that was cut short leaves an invalid index behind.
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {definition}")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for name in INDEXES:
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
    op.drop_column("document_versions", "bands")
    op.drop_column("document_versions", "signature")
    op.drop_column("documents", "personal_data")
    op.drop_column("documents", "progress")
    op.drop_column("documents", "source_tag")
    op.drop_column("collections", "rebuild_digest")
    op.drop_column("collections", "rebuild_since")
