"""Cut each model's partition of vectors into leaves, so that a bulk load can have one of its own.

The rows stay where they are: a partition becomes the first leaf of a new one, with its indexes. The
check on the model reads each once.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

PARTITIONS = """
SELECT m.id, m.dimensions FROM embedding_models AS m
WHERE to_regclass('embeddings_m' || m.id) IS NOT NULL ORDER BY m.id
"""
INDEXES = """
SELECT relname FROM pg_index JOIN pg_class ON oid = indexrelid
WHERE indrelid = to_regclass(:table)
"""
LEAVES = r"""
SELECT relname, relname || '_hnsw' FROM pg_inherits JOIN pg_class ON oid = inhrelid
WHERE inhparent = to_regclass(:partition)
ORDER BY substring(relname FROM '\d+$')::int
"""


def upgrade() -> None:
    for model_id, dimensions in rows(PARTITIONS):
        partition = f"embeddings_m{model_id}"
        leaf = f"{partition}_0"
        op.execute(f"ALTER TABLE embeddings DETACH PARTITION {partition}")
        rename(partition, leaf)
        op.execute(
            f"ALTER TABLE {leaf} ADD CONSTRAINT model CHECK (model_id = {model_id}::smallint)"
        )
        op.execute(
            f"CREATE TABLE {partition} PARTITION OF embeddings"
            f" (CONSTRAINT dimensions CHECK (vector_dims(vector) = {dimensions}))"
            f" FOR VALUES IN ({model_id}) PARTITION BY RANGE (chunk_id)"
        )
        op.execute(
            f"ALTER TABLE {partition} ATTACH PARTITION {leaf}"
            " FOR VALUES FROM (MINVALUE) TO (MAXVALUE)"
        )


def downgrade() -> None:
    for model_id, _ in rows(PARTITIONS):
        partition = f"embeddings_m{model_id}"
        leaves = rows(LEAVES, partition=partition)
        (first, index), others = leaves[0], leaves[1:]
        for leaf, _ in leaves:
            op.execute(f"ALTER TABLE {partition} DETACH PARTITION {leaf}")
        op.execute(f"DROP TABLE {partition}")
        if others:
            # Row by row it would take longer than building it again, which the service does.
            op.execute(f"DROP INDEX IF EXISTS {index}")
        for leaf, _ in others:
            op.execute(f"INSERT INTO {first} SELECT * FROM {leaf}")  # noqa: S608 - names of ours
            op.execute(f"DROP TABLE {leaf}")
        for name in ("model", "closing"):
            op.execute(f"ALTER TABLE {first} DROP CONSTRAINT IF EXISTS {name}")
        rename(first, partition)
        op.execute(
            f"ALTER TABLE embeddings ATTACH PARTITION {partition} FOR VALUES IN ({model_id})"
        )


def rename(table: str, name: str) -> None:
    """Rename a table, and its indexes with it."""
    for (index,) in rows(INDEXES, table=table):
        op.execute(f"ALTER INDEX {index} RENAME TO {name}{index.removeprefix(table)}")
    op.execute(f"ALTER TABLE {table} RENAME TO {name}")


def rows(query: str, **parameters: str) -> list[tuple[object, ...]]:
    return [tuple(row) for row in op.get_bind().execute(sa.text(query), parameters)]
