"""From a ranking to what is shown: the passages themselves, read in the search's own snapshot."""

import structlog

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
    rows = await snapshot.fetch(
        f"""
        SELECT c.id, c.document_id, c.collection_id, d.title, d.uri, c.text, c.heading, c.page,
          c.start_char, c.end_char, c.content_hash, c.page_breaks
        FROM chunks AS c JOIN documents AS d ON d.id = c.document_id
        WHERE c.id = ANY(%(chunk_ids)s) AND {scope.visible_documents}
        """,  # noqa: S608 - conditions of the scope
        {**scope.parameters, "chunk_ids": best},
    )
    chunk_ids: list[int] = best.tolist()
    names = {collection.id: collection.name for collection in scope.collections}
    found = {row[0]: row for row in rows}
    if len(found) < len(chunk_ids):
        log.error("index_names_passages_that_are_not_there", missing=len(chunk_ids) - len(found))
    hits = [
        Hit(
            chunk_id=chunk_id,
            document_id=row[1],
            collection=names[row[2]],
            title=row[3],
            uri=row[4],
            text=row[5],
            heading=tuple(row[6]),
            page=row[7],
            start=row[8],
            end=row[9],
            score=float(ranking.scores[place]),
            content_hash=row[10],
            page_breaks=tuple(row[11]),
            similarity=ranking.similarity(place),
            explanation=ranking.explain(place) if request.explain else None,
        )
        for place, chunk_id in enumerate(chunk_ids)
        if (row := found.get(chunk_id)) is not None
    ]
    return collapse(hits, count) if request.collapse_duplicates else hits
