"""What a request may see. The one place that decides it, and the one that says so in SQL.

Every statement of search takes its conditions and parameters from a `Scope`; there is no other
way to read chunks, vectors or postings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.access import Caller
from app.db.arrays import Texts
from app.db.collection_settings import RerankerChoice
from app.db.snapshot import Snapshot
from app.errors import InvalidInput, NotFound
from app.search.filters import filter_conditions

MAX_COLLECTIONS = 50
MAX_NAME_CHARS = 100

ChunkIds = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ScopedModel:
    """`chunks_count` is that of all collections, of any tenant, which share the model's index."""

    id: int
    name: str
    digest: str
    dimensions: int
    chunks_count: int


@dataclass(frozen=True, slots=True)
class ScopedCollection:
    id: int
    name: str
    generation: int
    chunks_count: int
    terms_count: int
    languages: Sequence[str]
    has_groups: bool
    reranker: RerankerChoice | None
    token_vectors: bool
    rewrite: bool
    quotes_when_busy: bool = False


@dataclass(frozen=True, slots=True)
class Scope:
    """The collections of a request, all of one model, and the condition on their documents.

    `condition` speaks of `documents AS d`; None means that every document may be seen. All
    conditions have their values in `parameters`.
    """

    model: ScopedModel
    collections: Sequence[ScopedCollection]
    condition: str | None
    parameters: Mapping[str, Any]

    @property
    def chunks_count(self) -> int:
        return sum(collection.chunks_count for collection in self.collections)

    @property
    def terms_count(self) -> int:
        return sum(collection.terms_count for collection in self.collections)

    @property
    def languages(self) -> list[str]:
        """Languages that the collections hold, in a stable order."""
        return sorted({name for collection in self.collections for name in collection.languages})

    @property
    def visible_documents(self) -> str:
        """A condition on `documents AS d` that holds for what the request may see, and no more."""
        own = "d.tenant_id = %(tenant_id)s AND d.collection_id = ANY(%(collection_ids)s)"
        return own if self.condition is None else f"{own} AND {self.condition}"


@dataclass(frozen=True, slots=True)
class AllowedChunks:
    """The chunks of the visible documents, as ranges: `firsts` ascend, `lasts` stand beside them."""

    firsts: ChunkIds
    lasts: ChunkIds

    def __len__(self) -> int:
        return int((self.lasts - self.firsts + 1).sum())

    @property
    def chunk_ids(self) -> ChunkIds:
        """All of them, ascending."""
        counts = self.lasts - self.firsts + 1
        places = np.arange(len(self), dtype=np.int64)
        return places + np.repeat(self.lasts - counts.cumsum() + 1, counts)

    def holds(self, chunk_ids: ChunkIds) -> NDArray[np.bool_]:
        """Which of the chunks are among them."""
        if len(self.firsts) == 0:
            return np.zeros(len(chunk_ids), np.bool_)
        places = np.searchsorted(self.firsts, chunk_ids, side="right") - 1
        return (places >= 0) & (chunk_ids <= self.lasts[places])


async def resolve(
    snapshot: Snapshot, caller: Caller, names: Sequence[str], filters: Mapping[str, Any]
) -> Scope:
    """The scope of a request.

    Raises NotFound for a collection that this caller has not got, InvalidInput for a filter that
    makes no sense and for collections that cannot be searched together.
    """
    conditions, parameters = filter_conditions(filters)
    model, collections = await _find_collections(snapshot, caller, names)
    if caller.groups is not None and any(collection.has_groups for collection in collections):
        parameters["groups"] = sorted(caller.groups)
        conditions.append("(d.groups = '{}' OR d.groups && %(groups)s::text[])")
    parameters["tenant_id"] = caller.tenant_id
    parameters["collection_ids"] = np.array([collection.id for collection in collections])
    return Scope(model, collections, " AND ".join(conditions) or None, parameters)


async def allowed_chunks(snapshot: Snapshot, scope: Scope) -> AllowedChunks:
    """The chunks that a restricted scope leaves.

    Asked by the tables' owner: under a policy PostgreSQL would not use the index on metadata, and
    read all documents of the collections. What comes of it are ids, and those of others' chunks
    would find nothing.
    """
    [(ranges,)] = await snapshot.fetch_as_owner(
        f"""
        SELECT string_agg(
          int8send(v.first_chunk_id) || int8send(v.last_chunk_id), '' ORDER BY v.first_chunk_id
        )
        FROM documents AS d JOIN document_versions AS v ON v.id = d.current_version_id
        WHERE {scope.visible_documents} AND v.chunks_count > 0
        """,  # noqa: S608 - conditions of this module's making
        scope.parameters,
    )
    bounds = np.frombuffer(ranges or b"", ">i8").astype(np.int64).reshape(-1, 2)
    return AllowedChunks(bounds[:, 0], bounds[:, 1])


# --- collections ----------------------------------------------------------------------------------


async def _find_collections(
    snapshot: Snapshot, caller: Caller, names: Sequence[str]
) -> tuple[ScopedModel, list[ScopedCollection]]:
    wanted = list(dict.fromkeys(names))
    if not wanted:
        raise InvalidInput("No collection is named.", hint="Name at least one collection.")
    if len(wanted) > MAX_COLLECTIONS:
        raise InvalidInput(f"At most {MAX_COLLECTIONS} collections can be searched at once.")
    permitted = [
        name
        for name in wanted
        if name.isprintable() and (caller.collections is None or name in caller.collections)
    ]
    rows = await snapshot.fetch(
        _COLLECTIONS, {"tenant_id": caller.tenant_id, "names": Texts(permitted)}
    )
    models = {row[1]: ScopedModel(*row[_FIRST_MODEL_COLUMN:]) for row in rows}
    found = {row[1]: ScopedCollection(*row[:_FIRST_MODEL_COLUMN]) for row in rows}
    for name in wanted:
        if name not in found:
            raise NotFound(
                f"There is no collection {ascii(name)[:MAX_NAME_CHARS]}.",
                hint="GET /api/collections lists the collections that there are.",
            )
    if len({model.id for model in models.values()}) > 1:
        embedded = ", ".join(f"{name} ({models[name].name})" for name in wanted)
        raise InvalidInput(
            f"These collections were embedded with different models: {embedded}.",
            hint="Search them one by one, or ingest them again with one model.",
        )
    return models[wanted[0]], [found[name] for name in wanted]


_FIRST_MODEL_COLUMN = 11
_COLLECTIONS = """
    SELECT c.id, c.name, c.generation, c.chunks_count, c.terms_count, c.languages,
      EXISTS (SELECT FROM documents AS d WHERE d.collection_id = c.id AND d.groups <> '{}'),
      c.settings -> 'search' ->> 'reranker',
      coalesce((c.settings #>> '{search,token_vectors}')::boolean, false),
      coalesce((c.settings #>> '{search,rewrite}')::boolean, false),
      coalesce((c.settings #>> '{answers,quote_when_busy}')::boolean, false),
      m.id, m.name, m.digest, m.dimensions,
      (SELECT sum(o.chunks_count)::bigint FROM collections AS o WHERE o.embedding_model_id = m.id)
    FROM collections AS c JOIN embedding_models AS m ON m.id = c.embedding_model_id
    WHERE c.tenant_id = %(tenant_id)s AND c.name = ANY(%(names)s)
"""
