"""What was changed by hand about the model servers, for every process to follow.

Revision ID: 0014
Revises: 0013
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.create_table(
        "model_server_changes",
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column(
            "changed_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint("slots > 0", name=op.f("ck_model_server_changes_slots")),
        sa.CheckConstraint(
            "state IN ('serving', 'draining', 'removed')",
            name=op.f("ck_model_server_changes_state"),
        ),
        sa.PrimaryKeyConstraint("address", name=op.f("pk_model_server_changes")),
    )


def downgrade() -> None:
    op.drop_table("model_server_changes")
