"""How a search begins: what the caller sees, while the question's vector is on its way.

Whoever knows already what the search would find reads the passages again, as they are now; whoever
does not hands over what was begun.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from app.access import Caller
from app.db.snapshot import Snapshot, Snapshots
from app.embedding.query_models import QueryModels, Question
from app.search.base import Hit, SearchRequest
from app.search.candidate import with_candidate_model
from app.search.passages import hit_of, read_rows
from app.search.scope import Scope, resolve
from app.search.vector import SETTINGS

Score = tuple[float, float | None]
"""What a passage scored, and its similarity."""


class Sight:
    """What a caller sees at one point in time; `scope` says of which generation it is."""

    def __init__(self, snapshot: Snapshot, scope: Scope, held: AsyncExitStack) -> None:
        self.snapshot = snapshot
        self.scope = scope
        self._held = held

    async def read(self, scores: Mapping[int, Score]) -> Mapping[int, Hit]:
        """Those of the passages with these ids that are there and may be seen, as they scored."""
        names = {collection.id: collection.name for collection in self.scope.collections}
        rows = await read_rows(self.snapshot, self.scope, list(scores))
        found: dict[int, Hit] = {}
        for row in rows:
            score, similarity = scores[row[0]]
            found[row[0]] = hit_of(row, names, score=score, similarity=similarity)
        return found

    async def close(self) -> None:
        """Give the connection back before the search is over; nothing can be read any more."""
        await self._held.aclose()


@dataclass(frozen=True, slots=True)
class Begun:
    """`question` is None where no vector is asked for."""

    question: Question | None
    sight: Sight


class Beginnings:
    def __init__(self, snapshots: Snapshots, models: QueryModels) -> None:
        self._snapshots = snapshots
        self._models = models

    @asynccontextmanager
    async def begin(
        self, caller: Caller, request: SearchRequest, text: str
    ) -> AsyncGenerator[Begun]:
        """Both are open to the end of the block; `text` is what of the query is embedded.

        Raises what Searcher.search raises for the scope of a request.
        """
        async with self._question(caller, request, text) as question, AsyncExitStack() as held:
            snapshot = await held.enter_async_context(
                self._snapshots.open(caller.tenant_id, SETTINGS)
            )
            scope = await resolve(snapshot, caller, request.collections, request.filters)
            if request.candidate_model:
                scope = await with_candidate_model(snapshot, scope)
            if question is not None:
                question.settle(scope.model.id, scope.model.digest)
            yield Begun(question, Sight(snapshot, scope, held))

    @asynccontextmanager
    async def _question(
        self, caller: Caller, request: SearchRequest, text: str
    ) -> AsyncGenerator[Question | None]:
        """The embedding of the query under way; ended with the search, however that ends."""
        if request.mode == "keyword":
            yield None
            return
        place = (caller.tenant_id, request.collections, request.candidate_model)
        async with self._models.question(text, place) as question:
            yield question
