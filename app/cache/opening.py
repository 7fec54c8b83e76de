"""The layers that the settings ask for, over the store that there is."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

from app.answering.base import Writer
from app.answering.kinds import KindReader
from app.cache.answers import CachedWriter
from app.cache.base import SHARED, Bounds, LayerName, Store
from app.cache.chunks import CachedSearcher, GoingOn, ObservedSearcher, Reranking
from app.cache.embeddings import CachedEmbedding, FoldsCase
from app.cache.in_process import InProcessStore
from app.cache.intents import CachedKinds
from app.cache.judging import Judge
from app.cache.layer import Layer
from app.cache.leases import Leases
from app.cache.near import NearStore
from app.cache.paraphrases import Paraphrases
from app.cache.report import Reports
from app.cache.single_flight import Flights
from app.cache.statistics import SharedStatistics, Statistics, keep_settling
from app.cache.store import RedisStore, open_clients
from app.cache.tallies import InProcessTallies, RedisTallies, Tallies
from app.config import Settings
from app.costs.ledger import Ledger
from app.db.snapshot import Snapshots
from app.embedding.base import QueryEmbedding
from app.embedding.query_models import QueryModels
from app.search.base import Searcher
from app.search.beginning import Beginnings
from app.search.reranking import Rerankers


@dataclass(frozen=True, slots=True)
class Caches:
    """Puts each layer before what it caches, or nothing where the layer is off.

    `near` is the `store` behind copies in this process, where it is not in the process itself.
    """

    settings: Settings
    store: Store
    near: Store
    statistics: Statistics
    flights: Flights
    folds_case: FoldsCase
    reports: Reports
    judge: Judge

    @property
    def in_redis(self) -> bool:
        """Whether values are shared by all processes."""
        return isinstance(self.store, RedisStore)

    def is_on(self, layer: LayerName) -> bool:
        return {
            "embedding": self.settings.cache_embeddings,
            "chunks": self.settings.cache_chunks,
            "answer": self.settings.cache_answers,
        }[layer]

    async def clear(self, layer: LayerName, tenant_id: int) -> int:
        """Forget what a tenant has in a layer; how much it was.

        With the answers goes what was found of those that paraphrases shared: it begins anew.
        """
        removed = await self.near.clear(layer, SHARED if layer == "embedding" else str(tenant_id))
        if layer == "answer":
            await self.judge.begin_anew(tenant_id)
        self.reports.forget()
        return removed

    def embeddings(self, inner: QueryEmbedding) -> QueryEmbedding:
        if not self.settings.cache_embeddings:
            return inner
        return CachedEmbedding(inner, self._layer("embedding"), self.folds_case)

    def kinds(self, inner: KindReader) -> KindReader:
        if not self.settings.cache_embeddings:
            return inner
        ttl_seconds = self.settings.cache_embeddings_ttl_seconds
        return CachedKinds(inner, self._layer("embedding"), ttl_seconds=ttl_seconds)

    def chunks(
        self,
        inner: GoingOn,
        snapshots: Snapshots,
        models: QueryModels,
        rerankers: Rerankers,
    ) -> Searcher:
        if self.settings.cache_chunks:
            reranking = _reranking(self.settings, models.default, rerankers)
            beginnings = Beginnings(snapshots, models)
            layer = self._layer("chunks")
            return ObservedSearcher(
                CachedSearcher(inner, beginnings, models, reranking, layer, self.folds_case)
            )
        return ObservedSearcher(inner)

    def answers(self, inner: Writer, default: QueryEmbedding, ledger: Ledger) -> Writer:
        if not self.settings.cache_answers:
            return inner
        layer = self._layer("answer")
        paraphrases = None
        if self.settings.cache_paraphrases:
            similarity = self.settings.cache_paraphrase_similarity
            paraphrases = Paraphrases(layer, default, self.judge, similarity=similarity)
        return CachedWriter(inner, default, ledger, layer, self.flights, paraphrases)

    def _layer(self, name: LayerName) -> Layer:
        return Layer(name, self.near, self.statistics)


@asynccontextmanager
async def open_caches(settings: Settings) -> AsyncGenerator[Caches]:
    """Connects to nothing yet; what is kept of it in Redis outlives this."""
    async with AsyncExitStack() as stack:
        bounds = _bounds(settings)
        statistics = Statistics()
        clients = open_clients(settings)
        leases = None
        if clients is None:
            store: Store = InProcessStore(bounds)
            near = store
            tallies: Tallies = InProcessTallies()
            counting = keep_settling(statistics)
        else:
            for client in clients:
                stack.push_async_callback(client.aclose, close_connection_pool=True)
            store = RedisStore(clients, bounds, timeout_seconds=settings.redis_timeout_seconds)
            near = NearStore(store)
            leases = Leases(store, clients[0])
            tallies = RedisTallies(store, clients[0])
            counting = SharedStatistics(statistics, store, clients[0]).keep()
        stack.push_async_callback(_end, asyncio.create_task(counting))
        flights = Flights(leases)
        stack.push_async_callback(flights.close)
        reports = Reports(store, statistics)
        stack.push_async_callback(reports.close)
        judge = Judge(tallies, share=settings.cache_paraphrase_judged_share)
        stack.push_async_callback(judge.close)
        yield Caches(settings, store, near, statistics, flights, {}, reports, judge)


def _bounds(settings: Settings) -> Mapping[LayerName, Bounds]:
    entry_bytes, share = settings.cache_entry_bytes, settings.cache_tenant_share

    def of(ttl_seconds: float, layer_bytes: int, bucket_share: float) -> Bounds:
        return Bounds(ttl_seconds, layer_bytes, int(layer_bytes * bucket_share), entry_bytes)

    return {
        # Vectors belong to no tenant: there is one bucket of them.
        "embedding": of(
            settings.cache_embeddings_ttl_seconds, settings.cache_embeddings_bytes, 1.0
        ),
        "chunks": of(settings.cache_chunks_ttl_seconds, settings.cache_chunks_bytes, share),
        "answer": of(settings.cache_answers_ttl_seconds, settings.cache_answers_bytes, share),
    }


def _reranking(settings: Settings, default: QueryEmbedding, rerankers: Rerankers) -> Reranking:
    own = rerankers.own
    return Reranking(
        own,
        (
            rerankers.open(own).digest if own else "",
            default.embedder.digest,
            settings.reranker_model,
            settings.rerank_candidates,
            settings.rerank_share,
        ),
    )


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
