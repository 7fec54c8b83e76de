"""What routes and pages ask for, each by an annotated name."""

from typing import Annotated, TypeVar

from fastapi import Depends, Request

from app.access import Caller
from app.answering.base import Answerer
from app.cache.opening import Caches
from app.config import Settings
from app.conversations.memory import Memory
from app.costs.budgets import Budgets
from app.costs.reports import CostReports
from app.documents.duplicates import Duplicates
from app.documents.library import Library
from app.documents.overview import Overlook
from app.documents.queue import Queue
from app.documents.sources import Sources
from app.documents.switches import ModelSwitches
from app.errors import NotFound, Unauthenticated
from app.experiments.rollouts import Rollouts
from app.llm.catalogue import Registry
from app.llm.following import ModelServers
from app.llm.pool import GenerationPool
from app.llm.providers import Providers
from app.resources import Resources
from app.search.base import Searcher
from app.search.reranking import Rerankers

Part = TypeVar("Part")

# All of these are coroutines, because FastAPI sends plain functions through a thread.


async def _resources(request: Request) -> Resources:
    resources: Resources = request.app.state.resources
    return resources


async def _visitor(request: Request) -> Caller | None:
    caller: Caller | None = request.state.caller
    return caller


async def _caller(visitor: Annotated[Caller | None, Depends(_visitor)]) -> Caller:
    if visitor is None:
        raise Unauthenticated()
    return visitor


ResourcesDep = Annotated[Resources, Depends(_resources)]


async def _settings(resources: ResourcesDep) -> Settings:
    return resources.settings


async def _library(resources: ResourcesDep) -> Library:
    return resources.library


async def _duplicates(resources: ResourcesDep) -> Duplicates:
    return resources.duplicates


async def _queue(resources: ResourcesDep) -> Queue:
    return resources.queue


async def _sources(resources: ResourcesDep) -> Sources:
    return resources.sources


async def _switches(resources: ResourcesDep) -> ModelSwitches:
    return resources.switches


async def _overlook(resources: ResourcesDep) -> Overlook:
    return resources.overlook


async def _searcher(resources: ResourcesDep) -> Searcher:
    return resources.searcher


async def _rerankers(resources: ResourcesDep) -> Rerankers:
    return resources.rerankers


async def _answerer(resources: ResourcesDep) -> Answerer:
    return resources.answerer


async def _pool(resources: ResourcesDep) -> GenerationPool:
    return _configured(resources.chat_model)


async def _model_servers(resources: ResourcesDep) -> ModelServers:
    return _configured(resources.model_servers)


def _configured(part: Part | None) -> Part:
    if part is None:
        raise NotFound(
            "No model servers are configured.",
            hint="Set FOOTNOTE_OLLAMA_URLS to the addresses of your Ollama servers.",
        )
    return part


async def _caches(resources: ResourcesDep) -> Caches:
    return resources.caches


async def _memory(resources: ResourcesDep) -> Memory:
    return resources.memory


async def _registry(resources: ResourcesDep) -> Registry:
    return resources.registry


async def _providers(resources: ResourcesDep) -> Providers:
    return resources.providers


async def _budgets(resources: ResourcesDep) -> Budgets:
    return resources.budgets


async def _cost_reports(resources: ResourcesDep) -> CostReports:
    return resources.cost_reports


async def _rollouts(resources: ResourcesDep) -> Rollouts:
    return resources.rollouts


CallerDep = Annotated[Caller, Depends(_caller)]
"""Who calls; the doors have already checked the key and its scopes."""

VisitorDep = Annotated[Caller | None, Depends(_visitor)]
"""For pages: the local owner, or None where the service asks for keys."""

SettingsDep = Annotated[Settings, Depends(_settings)]
LibraryDep = Annotated[Library, Depends(_library)]
DuplicatesDep = Annotated[Duplicates, Depends(_duplicates)]
QueueDep = Annotated[Queue, Depends(_queue)]
SourcesDep = Annotated[Sources, Depends(_sources)]
SwitchesDep = Annotated[ModelSwitches, Depends(_switches)]
OverlookDep = Annotated[Overlook, Depends(_overlook)]
SearcherDep = Annotated[Searcher, Depends(_searcher)]
RerankersDep = Annotated[Rerankers, Depends(_rerankers)]
AnswererDep = Annotated[Answerer, Depends(_answerer)]
RegistryDep = Annotated[Registry, Depends(_registry)]
ProvidersDep = Annotated[Providers, Depends(_providers)]
BudgetsDep = Annotated[Budgets, Depends(_budgets)]
CostReportsDep = Annotated[CostReports, Depends(_cost_reports)]
ModelServersDep = Annotated[ModelServers, Depends(_model_servers)]
PoolDep = Annotated[GenerationPool, Depends(_pool)]
CachesDep = Annotated[Caches, Depends(_caches)]
RolloutsDep = Annotated[Rollouts, Depends(_rollouts)]
MemoryDep = Annotated[Memory, Depends(_memory)]
