"""From a ranking to what is shown: the passages themselves, read in the search's own snapshot."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from app.db.snapshot import Snapshot
from app.search.base import Hit, SearchRequest
from app.search.duplicates import collapse
from app.search.ranking import CANDIDATES, Ranking
from app.search.scope import Scope

log = structlog.get_logger(__name__)


async def read_hits(
    snapshot: Snapshot, scope: Scope, ranking: Ranking, request: SearchRequest, count: int
) -> list[Hit]:
    """The best passages of a ranking, best first; `count` of them at most."""
    # Copies may take up many places before the count is reached; the candidates are a bound.
    wanted = CANDIDATES if request.collapse_duplicates else 0
    best = ranking.chunk_ids[: max(count, wanted)]
    if len(best) == 0:
        return []
    rows = await read_rows(snapshot, scope, best)
    chunk_ids: list[int] = best.tolist()
    names = {collection.id: collection.name for collection in scope.collections}
    found = {row[0]: row for row in rows}
    if len(found) < len(chunk_ids):
        log.error("index_names_passages_that_are_not_there", missing=len(chunk_ids) - len(found))
    hits = [
        hit_of(
            row,
            names,
            score=float(ranking.scores[place]),
            similarity=ranking.similarity(place),
            explanation=ranking.explain(place) if request.explain else None,
        )
        for place, chunk_id in enumerate(chunk_ids)
        if (row := found.get(chunk_id)) is not None
    ]
    return collapse(hits, count) if request.collapse_duplicates else hits


async def read_rows(
    snapshot: Snapshot, scope: Scope, chunk_ids: NDArray[np.int64] | Sequence[int]
) -> list[tuple[Any, ...]]:
    """Those of the passages that the scope shows, in no order; see `hit_of`."""
    return await snapshot.fetch(
        f"""
        SELECT c.id, c.document_id, c.collection_id, d.title, d.uri, c.text, c.heading, c.page,
          c.start_char, c.end_char, c.content_hash, c.page_breaks
        FROM chunks AS c JOIN documents AS d ON d.id = c.document_id
        WHERE c.id = ANY(%(chunk_ids)s) AND {scope.visible_documents}
        """,  # noqa: S608 - conditions of the scope
        {**scope.parameters, "chunk_ids": np.asarray(chunk_ids, np.int64)},
    )


def hit_of(
    row: tuple[Any, ...],
    collections: Mapping[int, str],
    *,
    score: float = 0.0,
    similarity: float | None = None,
    explanation: Mapping[str, Any] | None = None,
) -> Hit:
    """A passage as `read_rows` gives it, with what a ranking says of it."""
    return Hit(
        chunk_id=row[0],
        document_id=row[1],
        collection=collections[row[2]],
        title=row[3],
        uri=row[4],
        text=row[5],
        heading=tuple(row[6]),
        page=row[7],
        start=row[8],
        end=row[9],
        score=score,
        content_hash=row[10],
        page_breaks=tuple(row[11]),
        similarity=similarity,
        explanation=explanation,
    )
