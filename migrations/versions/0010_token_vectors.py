"""Signs of token vectors, for collections that ask for late interaction.

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op

from app.db.row_security import OWN_ROWS, grant, guard

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.create_table(
        "token_vectors",
        sa.Column("chunk_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("model_id", sa.SmallInteger(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("collection_id", sa.Integer(), nullable=False),
        sa.Column("version", sa.SmallInteger(), nullable=False),
        sa.Column("width", sa.SmallInteger(), nullable=False),
        sa.Column("signs", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["chunk_id"],
            ["chunks.id"],
            name=op.f("fk_token_vectors_chunk_id_chunks"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["model_id"],
            ["embedding_models.id"],
            name=op.f("fk_token_vectors_model_id_embedding_models"),
        ),
        sa.PrimaryKeyConstraint("chunk_id", name=op.f("pk_token_vectors")),
    )
    op.create_index("ix_token_vectors_collection", "token_vectors", ["collection_id"])
    # Signs are as good as random: to compress them would take time and save nothing.
    op.execute("ALTER TABLE token_vectors ALTER COLUMN signs SET STORAGE EXTERNAL")
    for statement in guard("token_vectors", OWN_ROWS):
        op.execute(statement)
    op.execute(grant("token_vectors"))


def downgrade() -> None:
    op.drop_table("token_vectors")
