"""A searcher over collections that a test fills with a line each."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from sqlalchemy.ext.asyncio import AsyncEngine

from app.access import LOCAL_OWNER, Caller
from app.config import Settings
from app.db.snapshot import Snapshots
from app.db.vectors import StoredModel, read_model, register_model
from app.embedding.query import QueryEmbedder
from app.embedding.query_models import QueryModels
from app.search.base import SearchRequest, SearchResult
from app.search.hybrid import HybridSearcher
from app.search.rerankers import rerankers_of
from app.search.reranking import Rerankers
from tests.doubles.words_embedder import WordsEmbedder, vector_of
from tests.passages import Source, Stored, add_collection, add_document


class Index:
    """`fill` and `search` a database as the product would."""

    def __init__(
        self,
        engine: AsyncEngine,
        settings: Settings,
        pool_size: int | None = None,
        rerankers: Rerankers | None = None,
    ) -> None:
        self.engine = engine
        self.snapshots = Snapshots(settings, url_of(engine), pool_size=pool_size)
        self.embedder = WordsEmbedder()
        self._query_embedder = QueryEmbedder(self.embedder, threads=1, waiters=50)  # pyright: ignore[reportArgumentType]
        self.models = QueryModels(settings, self._query_embedder, self._find_model)
        self.rerankers = rerankers or rerankers_of(settings)
        self._searcher = HybridSearcher(self.snapshots, self.models, self.rerankers)

    async def fill(
        self,
        sources: Iterable[Source | str],
        collection: str = "books",
        tenant_id: int = LOCAL_OWNER.tenant_id,
    ) -> list[Stored]:
        """A new collection of these documents; a plain text is a document of one passage."""
        embedder = self.embedder
        async with self.engine.begin() as connection:
            model_id = await register_model(
                connection,
                name=embedder.name,
                digest=embedder.digest,
                dimensions=embedder.dimensions,
            )
            collection_id = await add_collection(connection, collection, model_id, tenant_id)
            return [
                await add_document(
                    connection,
                    collection_id,
                    source,
                    np.stack([vector_of(passage) for passage in source.passages]),
                )
                for source in (Source([one]) if isinstance(one, str) else one for one in sources)
            ]

    async def search(
        self,
        query: str,
        *collections: str,
        caller: Caller = LOCAL_OWNER,
        **options: Any,
    ) -> SearchResult:
        request = SearchRequest(query, collections or ("books",), **options)
        return await self._searcher.search(caller, request)

    async def texts(self, query: str, *collections: str, **options: Any) -> list[str]:
        return [hit.text for hit in (await self.search(query, *collections, **options)).hits]

    async def _find_model(self, model_id: int) -> StoredModel:
        async with self.engine.connect() as connection:
            return await read_model(connection, model_id)

    async def close(self) -> None:
        self.rerankers.close()
        await self.models.close()
        await self.snapshots.close()


@asynccontextmanager
async def open_index(
    engine: AsyncEngine,
    settings: Settings,
    pool_size: int | None = None,
    rerankers: Rerankers | None = None,
) -> AsyncGenerator[Index]:
    index = Index(engine, settings, pool_size, rerankers)
    try:
        yield index
    finally:
        await index.close()


def url_of(engine: AsyncEngine) -> str:
    return engine.url.render_as_string(hide_password=False)
