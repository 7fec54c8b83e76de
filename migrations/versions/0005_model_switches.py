"""Another embedding model beside the one that serves.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.add_column("embedding_models", sa.Column("location", sa.Text(), nullable=True))
    op.create_table(
        "model_switches",
        sa.Column("collection_id", sa.Integer(), nullable=False),
        sa.Column("switch_id", sa.Uuid(), nullable=False),
        sa.Column("model_id", sa.SmallInteger(), nullable=False),
        sa.Column("status", sa.Text(), server_default="preparing", nullable=False),
        sa.Column("activates", sa.Boolean(), nullable=False),
        sa.Column("keeps_old", sa.Boolean(), nullable=False),
        sa.Column("embedded", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("complete_at", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("job_id", sa.BigInteger(), nullable=True),
        sa.Column("created_at", moment, server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "status IN ('preparing', 'prepared', 'retained', 'dropping', 'failed')",
            name=op.f("ck_model_switches_status"),
        ),
        sa.ForeignKeyConstraint(
            ["collection_id"],
            ["collections.id"],
            name=op.f("fk_model_switches_collection_id_collections"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["model_id"],
            ["embedding_models.id"],
            name=op.f("fk_model_switches_model_id_embedding_models"),
        ),
        sa.PrimaryKeyConstraint("collection_id", name=op.f("pk_model_switches")),
    )


def downgrade() -> None:
    # The vectors of the other models would be nobody's any more.
    op.execute(
        "DELETE FROM embeddings AS e USING model_switches AS s"
        " WHERE e.collection_id = s.collection_id AND e.model_id = s.model_id"
    )
    op.drop_table("model_switches")
    op.drop_column("embedding_models", "location")
