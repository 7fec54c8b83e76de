"""Passages that were found before, read again: as they are now, and only what the caller may see."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

from app.access import Caller
from app.db.snapshot import Snapshot, Snapshots
from app.search.base import Hit, SearchRequest
from app.search.passages import hit_of, read_rows
from app.search.scope import Scope, resolve

Score = tuple[float, float | None]
"""What a passage scored, and its similarity."""


class Sight:
    """What a caller sees at one point in time; `scope` says of which generation it is."""

    def __init__(self, snapshot: Snapshot, scope: Scope) -> None:
        self._snapshot = snapshot
        self.scope = scope

    async def read(self, scores: Mapping[int, Score]) -> Mapping[int, Hit]:
        """Those of the passages with these ids that are there and may be seen, as they scored."""
        names = {collection.id: collection.name for collection in self.scope.collections}
        rows = await read_rows(self._snapshot, self.scope, list(scores))
        found: dict[int, Hit] = {}
        for row in rows:
            score, similarity = scores[row[0]]
            found[row[0]] = hit_of(row, names, score=score, similarity=similarity)
        return found


class Rereader:
    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots

    @asynccontextmanager
    async def look(self, caller: Caller, request: SearchRequest) -> AsyncGenerator[Sight]:
        """Raises what Searcher.search raises for the scope of a request."""
        async with self._snapshots.open(caller.tenant_id) as snapshot:
            scope = await resolve(snapshot, caller, request.collections, request.filters)
            yield Sight(snapshot, scope)
