"""Searching with the vectors of the model that collections are to get, before they have it."""

from dataclasses import replace

from app.db.snapshot import Snapshot
from app.errors import Conflict
from app.search.scope import Scope, ScopedModel


async def with_candidate_model(snapshot: Snapshot, scope: Scope) -> Scope:
    """The same scope with that model; raises Conflict where not all collections have one ready."""
    rows = await snapshot.fetch(_CANDIDATES, scope.parameters)
    models = {row[0] for row in rows}
    if len(rows) < len(scope.collections) or len(models) > 1:
        names = ", ".join(collection.name for collection in scope.collections)
        raise Conflict(
            f"There is no other embedding model ready for {names}.",
            hint="`footnote models status` says how far it is; `footnote models switch` begins.",
        )
    return replace(scope, model=ScopedModel(*rows[0]))


_CANDIDATES = """
    SELECT m.id, m.name, m.digest, m.dimensions,
      (SELECT coalesce(sum(o.chunks_count), 0)::bigint FROM collections AS o
        LEFT JOIN model_switches AS other ON other.collection_id = o.id
        WHERE o.embedding_model_id = m.id OR other.model_id = m.id)
    FROM model_switches AS s JOIN embedding_models AS m ON m.id = s.model_id
    WHERE s.collection_id = ANY(%(collection_ids)s) AND s.status IN ('prepared', 'retained')
"""
