"""Opens, wires and closes everything the service stands on: the only wiring place."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from sqlalchemy.ext.asyncio import AsyncEngine

from app.access import Caller, KeyRing
from app.answering.answerer import GroundedAnswerer
from app.answering.base import Answerer
from app.answering.choosing import RoutedChoice
from app.answering.experimenting import ExperimentingAnswerer
from app.answering.kinds import FittedKinds
from app.answering.prompts import PROMPTS
from app.answering.writing import GroundedWriter
from app.cache.opening import Caches, open_caches
from app.cache.store import SOCKET_PATIENCE
from app.config import Settings
from app.conversations.memory import Memory
from app.costs.budgets import Budgets
from app.costs.ledger import Ledger
from app.costs.prices import Price
from app.costs.reports import CostReports
from app.db.row_security import check_reader
from app.db.schema import check_database
from app.db.session import WRITERS_IDLE_SECONDS, Sessions, open_engine, open_sessions
from app.db.snapshot import Snapshots
from app.db.statements import Statements
from app.db.transactions import in_transaction
from app.db.vectors import StoredModel, read_model, wanted_models
from app.documents.duplicates import Duplicates
from app.documents.library import Library
from app.documents.overview import Overlook
from app.documents.queue import Queue
from app.documents.sources import Sources
from app.documents.switches import ModelSwitches
from app.embedding.base import QueryEmbedding
from app.embedding.loading import open_for_questions, query_threads, usable_cores
from app.embedding.model_folder import location_of
from app.embedding.query import serve_queries
from app.embedding.query_models import QueryModels
from app.errors import DatabaseUnavailable, FootnoteError, StartupError
from app.experiments.rollouts import Available, Rollouts
from app.jobs import Jobs
from app.language_models import EXTRACTIVE
from app.llm.base import ChatModel
from app.llm.catalogue import Registry
from app.llm.following import ModelServers
from app.llm.pool import GenerationPool
from app.llm.providers import HostedProviders, Providers
from app.llm.registry import generation_options, open_chat_model, parse_instances
from app.llm.tiers import Tiers, why_not
from app.search.base import Searcher
from app.search.hybrid import HybridSearcher
from app.search.rerankers import open_own, rerankers_of
from app.search.reranking import Rerankers
from app.search.rewriting import Rewriter, RewritingSearcher

RETRY_DATABASE_SECONDS = 1.0
MODELS_SECONDS = 1.0
"""So often it is looked which models are needed: one is loaded long before it serves."""
UPLOADS_AT_ONCE = 4
CANCELLED_AGAIN_SECONDS = 1.0

log = structlog.get_logger(__name__)


class DatabaseWatch:
    """Whether the database fits, asked until it does; `problem` says what is wrong until then."""

    def __init__(self, settings: Settings, engine: AsyncEngine, keyring: KeyRing) -> None:
        self.problem: FootnoteError | None = DatabaseUnavailable(
            "The database was not reached yet."
        )
        self._settings = settings
        self._engine = engine
        self._keyring = keyring

    async def check(self) -> None:
        """Raises DatabaseUnavailable, or StartupError for what waiting does not heal."""
        try:
            await check_database(self._engine)
            if self._settings.row_level_security == "on":
                async with self._engine.connect() as connection:
                    await check_reader(connection)
            if self._settings.auth_required and not await self._keyring.any_usable():
                raise StartupError(
                    "The service asks for API keys, and there is none.",
                    hint="Make one with `footnote keys create NAME --scope read`, then start again.",
                )
        except DatabaseUnavailable:
            self.problem = DatabaseUnavailable()
            raise
        except FootnoteError as error:
            self.problem = error
            raise
        self.problem = None

    async def retry(self) -> None:
        """Check until it fits. By now the service runs, so nothing stops it any more."""
        while self.problem is not None:
            await asyncio.sleep(RETRY_DATABASE_SECONDS)
            try:
                await self.check()
            except FootnoteError as error:
                log.info("database_not_ready", reason=error.detail)
        log.info("database_ready")


@dataclass(frozen=True, slots=True)
class Resources:
    """`redis` is None where there is no server; `redis_kind` says what stands in its place."""

    settings: Settings
    engine: AsyncEngine
    monitor: AsyncEngine
    sessions: Sessions
    database: DatabaseWatch
    redis: Redis | None
    redis_kind: str
    keyring: KeyRing
    jobs: Jobs
    library: Library
    switches: ModelSwitches
    duplicates: Duplicates
    queue: Queue
    sources: Sources
    overlook: Overlook
    query_embedder: QueryEmbedding
    models: QueryModels
    rerankers: Rerankers
    caches: Caches
    searcher: Searcher
    chat_model: GenerationPool | None
    model_servers: ModelServers | None
    providers: Providers
    registry: Registry
    answerer: Answerer
    rollouts: Rollouts
    ledger: Ledger
    budgets: Budgets
    cost_reports: CostReports
    memory: Memory
    upload_turns: asyncio.Semaphore


@asynccontextmanager
async def open_resources(
    settings: Settings, *, redis_kind: str = "external"
) -> AsyncGenerator[Resources]:
    """Everything, closed again at the end in the opposite order.

    The settings name the database and Redis, embedded ones too. A database that is away does not
    keep the service from starting; it is asked again in the background. Raises StartupError when
    it does not fit or a model cannot be loaded.
    """
    if settings.database_url is None:
        raise StartupError(
            "There is no database.", hint="Start it with `footnote serve`, or set its URL."
        )
    database_url = settings.database_url.get_secret_value()
    async with AsyncExitStack() as stack:
        engine = open_engine(settings, database_url, idle_seconds=WRITERS_IDLE_SECONDS)
        stack.push_async_callback(engine.dispose)
        # A connection of its own, so that a busy pool is not mistaken for a dead database.
        monitor = open_engine(settings, database_url, pool_size=1)
        stack.push_async_callback(monitor.dispose)
        sessions = open_sessions(engine)
        statements = Statements(settings, database_url)
        stack.push_async_callback(statements.close)
        keyring = KeyRing(sessions)
        database = DatabaseWatch(settings, engine, keyring)
        await _meet_database(database, stack)

        redis = open_redis(settings)
        if redis is not None:
            stack.push_async_callback(redis.aclose)
        caches = await stack.enter_async_context(open_caches(settings))
        query_embedder = caches.embeddings(await _open_query_embedder(settings))
        models = QueryModels(
            settings,
            query_embedder,
            partial(_find_model, engine),
            lambda embedder: caches.embeddings(serve_queries(settings, embedder)),
        )
        stack.push_async_callback(models.close)
        stack.push_async_callback(_cancel, asyncio.create_task(_keep_loaded(engine, models)))
        jobs = Jobs(database_url, timeout_seconds=settings.database_timeout_seconds)
        await jobs.open()
        stack.push_async_callback(jobs.close)
        chat_model, model_servers = open_chat_model(settings), None
        if chat_model is not None:
            chat_model.start(redis, answers_seconds=settings.redis_timeout_seconds)
            stack.push_async_callback(chat_model.close)
            model_servers = ModelServers(
                chat_model, parse_instances(settings.ollama_urls), sessions
            )
            stack.push_async_callback(_cancel, asyncio.create_task(model_servers.follow()))
        ledger = open_ledger(settings, engine)
        stack.push_async_callback(ledger.close)
        hosted = HostedProviders(settings)
        stack.push_async_callback(hosted.close)
        await hosted.warm_up(frozenset(one.provider for one in settings.models))
        providers = Providers(settings, chat_model, hosted, ledger)
        registry = Registry(sessions, statements, settings)
        rerankers = rerankers_of(settings, query_embedder.embedder)
        stack.callback(rerankers.close)
        await asyncio.to_thread(open_own, rerankers)
        snapshots = Snapshots(settings, database_url)
        stack.push_async_callback(snapshots.close)
        searcher = RewritingSearcher(
            caches.chunks(
                HybridSearcher(snapshots, models, rerankers), snapshots, models, rerankers
            ),
            Rewriter(_own_model(settings, providers), generation_options(settings), settings),
        )
        writer = caches.answers(GroundedWriter(query_embedder), query_embedder, ledger)
        rollouts = Rollouts(
            engine, sessions, partial(_available_to_arms, registry, providers, rerankers)
        )
        stack.push_async_callback(rollouts.close)
        stack.push_async_callback(_cancel, asyncio.create_task(rollouts.follow()))
        choice = RoutedChoice(
            registry,
            Tiers(providers, settings),
            caches.kinds(FittedKinds()),
            query_embedder,
            settings,
        )

        yield Resources(
            settings=settings,
            engine=engine,
            monitor=monitor,
            sessions=sessions,
            database=database,
            redis=redis,
            redis_kind=redis_kind if redis is not None else "in-process",
            keyring=keyring,
            jobs=jobs,
            duplicates=Duplicates(sessions),
            queue=Queue(sessions, jobs, settings),
            sources=Sources(sessions, jobs, settings),
            overlook=Overlook(sessions, jobs),
            library=Library(
                sessions,
                jobs,
                settings,
                query_embedder.embedder,
                location=await asyncio.to_thread(location_of, settings.embedding_model),
                model_is_here=models.is_here,
            ),
            switches=ModelSwitches(sessions, jobs, settings, models),
            query_embedder=query_embedder,
            models=models,
            rerankers=rerankers,
            caches=caches,
            searcher=searcher,
            chat_model=chat_model,
            model_servers=model_servers,
            providers=providers,
            registry=registry,
            answerer=ExperimentingAnswerer(
                GroundedAnswerer(searcher, writer, choice, settings), rollouts
            ),
            rollouts=rollouts,
            ledger=ledger,
            budgets=Budgets(engine, settings.monthly_budget),
            cost_reports=CostReports(engine),
            memory=Memory(
                sessions,
                statements,
                history_turns=settings.history_turns,
                history_chars=settings.history_chars,
            ),
            upload_turns=asyncio.Semaphore(UPLOADS_AT_ONCE),
        )


def open_ledger(settings: Settings, engine: AsyncEngine) -> Ledger:
    reference = Price(
        prompt_per_million=settings.reference_prompt_price_per_million,
        completion_per_million=settings.reference_completion_price_per_million,
    )
    return Ledger(engine, reference=reference, default_limit=settings.monthly_budget)


def _own_model(settings: Settings, providers: Providers) -> ChatModel | None:
    """FOOTNOTE_MODEL where it can be asked, and asking it needs nobody's leave."""
    model = next(one for one in settings.all_models if one.name == settings.model)
    if providers.needs_leave(model) or providers.obstacle(model) is not None:
        return None
    return providers.open(model)


async def _available_to_arms(
    registry: Registry, providers: Providers, rerankers: Rerankers, caller: Caller
) -> Available:
    """Every model that the caller's questions can name, of the configuration or registered."""
    catalogue = await registry.catalogue(caller.tenant_id)
    models = {
        one.name: why_not(one, providers, cloud_allowed=catalogue.cloud_allowed)
        for one in catalogue.specs
    }
    return Available({EXTRACTIVE: None, **models}, frozenset(PROMPTS), reranker=bool(rerankers.own))


def open_redis(settings: Settings) -> Redis | None:
    """A client that gives up at once: whoever uses Redis here can do without it."""
    if settings.redis_url is None:
        return None
    return Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
        settings.redis_url.get_secret_value(),
        # Whoever asks has less patience; this is for what slips through that.
        socket_timeout=SOCKET_PATIENCE * settings.redis_timeout_seconds,
        socket_connect_timeout=SOCKET_PATIENCE * settings.redis_timeout_seconds,
        retry=Retry(NoBackoff(), 0),
        # The old protocol, unannounced: a new connection then costs no round trip of its own.
        protocol=2,
        driver_info=None,
    )


async def _meet_database(database: DatabaseWatch, stack: AsyncExitStack) -> None:
    try:
        await database.check()
    except DatabaseUnavailable as error:
        log.warning("database_away", reason=error.detail)
        retrying = asyncio.create_task(database.retry())
        stack.push_async_callback(_cancel, retrying)


async def _find_model(engine: AsyncEngine, model_id: int) -> StoredModel:
    return await in_transaction(engine.begin, lambda connection: read_model(connection, model_id))


async def _keep_loaded(engine: AsyncEngine, models: QueryModels) -> None:
    """Load what collections are searched with, and what they are about to get, before it is asked.

    Begins with the service, and ends with it.
    """
    while True:
        try:
            await models.preload(await in_transaction(engine.begin, wanted_models))
        except DatabaseUnavailable as error:
            log.info("models_not_looked_up", reason=error.detail)
        except Exception:
            log.exception("models_not_looked_up")
        await asyncio.sleep(MODELS_SECONDS)


async def _cancel(task: "asyncio.Task[None]") -> None:
    # Until Python 3.12 wait_for, in the pool of connections, swallows a cancellation that comes as
    # it ends.
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=CANCELLED_AGAIN_SECONDS)


async def _open_query_embedder(settings: Settings) -> QueryEmbedding:
    threads = max(1, usable_cores() // query_threads(settings))
    try:
        embedder = await asyncio.to_thread(open_for_questions, settings, threads=threads)
    except FootnoteError as error:
        raise StartupError(error.detail, hint=error.hint) from error
    return serve_queries(settings, embedder)
