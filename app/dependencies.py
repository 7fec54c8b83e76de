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


def _of(request: Request) -> Resources:
    resources: Resources = request.app.state.resources
    return resources


async def _resources(request: Request) -> Resources:
    return _of(request)


async def _visitor(request: Request) -> Caller | None:
    caller: Caller | None = request.state.caller
    return caller


async def _caller(request: Request) -> Caller:
    caller: Caller | None = request.state.caller
    if caller is None:
        raise Unauthenticated()
    return caller


ResourcesDep = Annotated[Resources, Depends(_resources)]


async def _settings(request: Request) -> Settings:
    return _of(request).settings


async def _library(request: Request) -> Library:
    return _of(request).library


async def _duplicates(request: Request) -> Duplicates:
    return _of(request).duplicates


async def _queue(request: Request) -> Queue:
    return _of(request).queue


async def _sources(request: Request) -> Sources:
    return _of(request).sources


async def _switches(request: Request) -> ModelSwitches:
    return _of(request).switches


async def _overlook(request: Request) -> Overlook:
    return _of(request).overlook


async def _searcher(request: Request) -> Searcher:
    return _of(request).searcher


async def _rerankers(request: Request) -> Rerankers:
    return _of(request).rerankers


async def _answerer(request: Request) -> Answerer:
    return _of(request).answerer


async def _pool(request: Request) -> GenerationPool:
    return _configured(_of(request).chat_model)


async def _model_servers(request: Request) -> ModelServers:
    return _configured(_of(request).model_servers)


def _configured(part: Part | None) -> Part:
    if part is None:
        raise NotFound(
            "No model servers are configured.",
            hint="Set FOOTNOTE_OLLAMA_URLS to the addresses of your Ollama servers.",
        )
    return part


async def _caches(request: Request) -> Caches:
    return _of(request).caches


async def _memory(request: Request) -> Memory:
    return _of(request).memory


async def _registry(request: Request) -> Registry:
    return _of(request).registry


async def _providers(request: Request) -> Providers:
    return _of(request).providers


async def _budgets(request: Request) -> Budgets:
    return _of(request).budgets


async def _cost_reports(request: Request) -> CostReports:
    return _of(request).cost_reports


async def _rollouts(request: Request) -> Rollouts:
    return _of(request).rollouts


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
