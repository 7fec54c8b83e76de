"""Where in a passage the next page begins, now that a passage may run over a page's end.

Revision ID: 0008
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0005"


def upgrade() -> None:
    # A constant default rewrites no row; passages of before end where their pages do.
    op.add_column(
        "chunks",
        sa.Column(
            "page_breaks",
            postgresql.ARRAY(sa.Integer()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
    )


def downgrade() -> None:
    op.drop_column("chunks", "page_breaks")
