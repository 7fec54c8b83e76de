"""Logging, request ids and the definitions of all metrics."""

import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from time import perf_counter
from typing import Literal

import structlog
from prometheus_client import Counter, Gauge, Histogram

from app.config import Settings

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

Flow = Literal["ingest", "search", "chat"]

STAGE_BUCKETS_SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120,
)  # fmt: skip

REQUESTS = Counter(
    "footnote_http_requests_total", "HTTP requests by route", ["method", "route", "status"]
)
REQUEST_SECONDS = Histogram(
    "footnote_http_request_seconds",
    "Time to the end of the reply",
    ["method", "route"],
    buckets=STAGE_BUCKETS_SECONDS,
)
STAGE_SECONDS = Histogram(
    "footnote_stage_seconds",
    "Time in each stage of ingestion, search and chat",
    ["flow", "stage"],
    buckets=STAGE_BUCKETS_SECONDS,
)
DOCUMENTS = Counter("footnote_documents_total", "Documents processed, by outcome", ["outcome"])
CHUNKS_EMBEDDED = Counter("footnote_chunks_embedded_total", "Chunks that the model embedded")
CHUNKS_REUSED = Counter("footnote_chunks_reused_total", "Chunks whose vector was already known")
RERANKS = Counter("footnote_reranks_total", "What rerankers were asked for", ["outcome"])
REWRITES = Counter(
    "footnote_rewrites_total", "Queries that a model was to rewrite, by outcome", ["outcome"]
)
ANSWERS = Counter("footnote_answers_total", "Answers, by mode", ["mode"])
GENERATION_FAILURES = Counter(
    "footnote_generation_failures_total", "Failed generations", ["instance", "phase"]
)
GENERATIONS_IN_FLIGHT = Gauge(
    "footnote_generations_in_flight", "Requests that a model server is working on", ["instance"]
)
GENERATION_SLOTS = Gauge(
    "footnote_generation_slots", "Slots of a model server that are in use", ["instance"]
)
HIDDEN_WAIT_SECONDS = Gauge(
    "footnote_hidden_wait_seconds", "Latest average wait inside a model server", ["instance"]
)
GENERATIONS_WAITING = Gauge("footnote_generations_waiting", "Requests waiting for a model server")
TOKENS = Counter("footnote_tokens_total", "Tokens that models read and wrote", ["model", "kind"])
COST = Counter("footnote_cost_total", "What generations cost", ["model"])
SAVED = Counter("footnote_saved_total", "What caches and local models saved", ["by"])
ROWS_LOST = Counter(
    "footnote_rows_lost_total", "Rows that were to be written behind an answer", ["table"]
)
BUDGET_ALERTS = Counter(
    "footnote_budget_alerts_total", "Budgets that reached a percentage; 100: refused", ["percent"]
)
EXPERIMENTS_HALTED = Counter(
    "footnote_experiments_halted_total", "Experiments halted because a guard was broken"
)
EJECTIONS = Counter(
    "footnote_ejections_total", "Model servers taken out of use, by cause", ["instance", "cause"]
)
TOKEN_GAP_SECONDS = Histogram(
    "footnote_token_gap_seconds",
    "Time between two tokens of an answer",
    buckets=(0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12),
)
PREDICTION_RATIO = Histogram(
    "footnote_prediction_ratio",
    "Time of an answer over what was predicted when it was sent",
    buckets=(0.25, 0.5, 0.7, 0.8, 0.9, 1.1, 1.25, 1.5, 2, 4, 8),
)
PREFIX_TOKENS = Counter(
    "footnote_prefix_tokens_total",
    "Prompt tokens that a model server was expected to have cached, and those that it had",
    ["kind"],
)
MODEL_LOADS = Counter("footnote_model_loads_total", "Models loaded into memory", ["instance"])
GENERATION_SHED = Counter(
    "footnote_generation_shed_total",
    "Requests refused before a model server, by reason",
    ["reason"],
)
GENERATION_FAILOVERS = Counter(
    "footnote_generation_failovers_total",
    "Failed attempts that moved on (first_token) or ended the answer (stream)",
    ["phase"],
)
HEDGES = Counter("footnote_hedges_total", "Second attempts, by outcome", ["outcome"])
CACHE_LOOKUPS = Counter(
    "footnote_cache_lookups_total", "Look-ups in a cache layer, by outcome", ["layer", "outcome"]
)
CACHE_FAILURES = Counter(
    "footnote_cache_failures_total", "Calls to Redis that found it away, slow or full", ["call"]
)
CACHE_PARAPHRASES = Counter(
    "footnote_cache_paraphrases_total",
    "Answers shared by paraphrases (shared), and what was found of those that were judged",
    ["outcome"],
)
GENERATION_FALLBACKS = Counter(
    "footnote_generation_fallbacks_total",
    "Requests that a model could not answer, so that the next of its chain was asked",
    ["model"],
)
DEGRADED = Gauge("footnote_degraded", "1 while a part runs in a degraded way", ["part"])


@cache
def _stage_seconds(flow: Flow, name: str) -> Histogram:
    return STAGE_SECONDS.labels(flow, name)


@contextmanager
def stage(flow: Flow, name: str, times_ms: dict[str, float] | None = None) -> Generator[None]:
    """Time a stage; `times_ms[name]` receives the milliseconds when given."""
    started = perf_counter()
    try:
        yield
    finally:
        seconds = perf_counter() - started
        _stage_seconds(flow, name).observe(seconds)
        if times_ms is not None:
            times_ms[name] = times_ms.get(name, 0.0) + seconds * 1000


def _add_request_id(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    current = request_id.get()
    if current is not None:
        event.setdefault("request_id", current)
    return event


def configure_logging(settings: Settings) -> None:
    """Readable lines on a terminal, JSON elsewhere; the standard library's loggers included."""
    as_json = settings.log_format == "json" or (
        settings.log_format == "auto" and not sys.stderr.isatty()
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_request_id,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if as_json
        # The default shows every local variable: slow, and some of them are secrets.
        else structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *([structlog.processors.format_exc_info] if as_json else []),
            renderer,
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    for noisy in ("httpx", "httpcore", "procrastinate", "alembic", "sentence_transformers"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(root.level),
        cache_logger_on_first_use=True,
    )
