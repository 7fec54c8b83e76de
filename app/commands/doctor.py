"""`footnote doctor`: is everything there that the settings ask for?"""

import asyncio
import platform
import re
import shutil
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Literal

import httpx
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rich.table import Table
from rich.text import Text
from sqlalchemy import create_engine, text

from app.cache.embedded import MINIMUM_VERSION as MINIMUM_REDIS
from app.cache.embedded import EmbeddedRedis
from app.commands.output import console, plain, print_json
from app.config import Settings
from app.db.embedded import binaries
from app.db.schema import ready_database
from app.db.session import sqlalchemy_url
from app.embedding.loading import open_embedder
from app.errors import FootnoteError, StartupError
from app.home import prepare_home
from app.language_models import OLLAMA, ModelSpec
from app.listening import base_url, is_footnote, open_listener
from app.llm.hosted import ProviderHealth
from app.llm.providers import HostedProviders
from app.llm.registry import parse_instance
from app.search.rerankers import open_own, rerankers_of
from reranker.base import RerankerUnavailable

MINIMUM_PYTHON = (3, 11)
ASK_TIMEOUT_SECONDS = 5.0
GIGABYTE = 1024**3

Verdict = Literal["ok", "note", "problem"]
STYLES: dict[Verdict, str] = {"ok": "green", "note": "yellow", "problem": "bold red"}


@dataclass(frozen=True, slots=True)
class Finding:
    part: str
    verdict: Verdict
    words: str
    hint: str = ""


def examine(settings: Settings, *, as_json: bool) -> bool:
    """Print what is found; whether all is well."""
    findings = [finding for check in CHECKS for finding in _examined(check, settings)]
    if as_json:
        print_json({"checks": [asdict(finding) for finding in findings]})
    else:
        _show(findings)
    return all(finding.verdict != "problem" for finding in findings)


def _show(findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        words = Text(plain(finding.words))
        if finding.hint:
            words.append(f"\n→ {plain(finding.hint)}", "bold")
        table.add_row(Text(finding.part), Text(finding.verdict, STYLES[finding.verdict]), words)
    console().print(table)


def _examined(
    check: Callable[[Settings], Generator[Finding]], settings: Settings
) -> Generator[Finding]:
    part = check.__name__.strip("_").replace("_", " ")
    try:
        yield from check(settings)
    except FootnoteError as error:
        yield Finding(part, "problem", error.detail, error.hint)


# --- the checks -----------------------------------------------------------------------------------


def _python(_settings: Settings) -> Generator[Finding]:
    recent = sys.version_info >= MINIMUM_PYTHON
    words = f"{platform.python_version()} on {platform.platform(terse=True)}"
    yield Finding(
        "python",
        "ok" if recent else "problem",
        words,
        "" if recent else "Footnote needs Python 3.11 or later.",
    )


def _home(settings: Settings) -> Generator[Finding]:
    free_bytes = shutil.disk_usage(prepare_home(settings.home)).free
    yield Finding(
        "home",
        "ok" if free_bytes > GIGABYTE else "note",
        f"{settings.home}, {free_bytes / GIGABYTE:.1f} GB free",
    )


def _database(settings: Settings) -> Generator[Finding]:
    if settings.database_url is None and not (settings.home / "postgres").exists():
        binaries()
        yield Finding("database", "note", "embedded; it will be made at the first start")
        return
    kind = "embedded" if settings.database_url is None else "external"
    with ready_database(settings) as url:
        engine = create_engine(sqlalchemy_url(url))
        with engine.connect() as connection:
            postgres = connection.execute(text("SHOW server_version")).scalar_one()
            pgvector = connection.execute(
                text("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
            ).scalar_one()
        engine.dispose()
    yield Finding("database", "ok", f"{kind}; PostgreSQL {postgres}, pgvector {pgvector}")


def _redis(settings: Settings) -> Generator[Finding]:
    if settings.redis_url is None:
        server = EmbeddedRedis(settings.home)
        try:
            if server.start() is None:
                words = "none on this machine; caches and limits live in each process"
                yield Finding("redis", "note", words, "Install redis or valkey to share them.")
            else:
                yield Finding("redis", "ok", f"embedded; {server.kind} {server.version}")
        finally:
            server.stop()
        return
    try:
        with redis.Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
            settings.redis_url.get_secret_value(),
            socket_timeout=ASK_TIMEOUT_SECONDS,
            socket_connect_timeout=ASK_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
        ) as client:
            about = client.info("server")  # pyright: ignore[reportUnknownMemberType]
    except (redis.RedisError, ValueError) as error:
        raise StartupError(
            f"Redis cannot be reached: {error}.", hint="Check FOOTNOTE_REDIS_URL."
        ) from error
    version = str(about["redis_version"])
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < MINIMUM_REDIS:
        raise StartupError(
            f"Redis {version} is too old.", hint="Use Redis 6.2 or later, or Valkey."
        )
    yield Finding("redis", "ok", f"external; Redis {version}")


def _embedding_model(settings: Settings) -> Generator[Finding]:
    embedder = open_embedder(settings)
    embedder.embed(["Does it run?"], "query")
    yield Finding(
        "embedding model",
        "ok",
        f"{embedder.name} on {embedder.runtime}, {embedder.dimensions} dimensions",
    )


def _reranker(settings: Settings) -> Generator[Finding]:
    rerankers = rerankers_of(settings)
    try:
        if not rerankers.own:
            yield Finding("reranker", "ok", "none; passages keep the order of the search")
            return
        open_own(rerankers)
        reranker = rerankers.open(rerankers.own)
        started = perf_counter()
        reranker.score("Does it run?", ["It runs."])
        took_ms = (perf_counter() - started) * 1000
        yield Finding("reranker", "ok", f"{reranker.name}; a passage took {took_ms:.0f} ms")
    except RerankerUnavailable as error:
        # Searches go on without it.
        hint = "Correct FOOTNOTE_RERANKER, or see that its server runs."
        yield Finding("reranker", "problem", f"{error}", hint)
    finally:
        rerankers.close()


def _language_model(settings: Settings) -> Generator[Finding]:
    if not settings.ollama_urls:
        words = "none; answers are quoted from the passages, not written"
        yield Finding("language model", "note", words, "Set FOOTNOTE_OLLAMA_URLS to use one.")
    for given in settings.ollama_urls:
        url, slots = parse_instance(given)
        yield _ollama(url, slots, [one for one in settings.all_models if one.provider == OLLAMA])


def _ollama(url: str, slots: int, models: Sequence[ModelSpec]) -> Finding:
    part = "language model"
    try:
        reply = httpx.get(f"{url.rstrip('/')}/api/tags", timeout=ASK_TIMEOUT_SECONDS)
        names = {str(one["name"]) for one in reply.raise_for_status().json()["models"]}
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        words = f"{url} does not answer as Ollama does: {error}"
        return Finding(part, "problem", words, "Start Ollama there, or correct the address.")
    wanted = [one.upstream_name for one in models]
    missing = [one for one in wanted if not names & {one, f"{one}:latest"}]
    if missing:
        words = f"{url} does not have {', '.join(missing)}"
        pulls = "; ".join(f"ollama pull {one}" for one in missing)
        return Finding(part, "problem", words, f"Run `{pulls}` there.")
    return Finding(part, "ok", f"{url} has {', '.join(wanted)}; {slots} at a time")


def _model_providers(settings: Settings) -> Generator[Finding]:
    part = "model providers"
    used: dict[str, list[str]] = {}
    for model in settings.models:
        if model.provider != OLLAMA:
            used.setdefault(model.provider, []).append(model.upstream_name)
    told = asyncio.run(_told(settings, frozenset(used)))
    for one in told:
        yield _provider(part, one, used.get(one.provider, []))
    healthy = sum(one.healthy for one in told)
    if told:
        words = f"{healthy} of {len(told)} healthy"
        yield Finding(part, "ok" if healthy == len(told) else "problem", words)
    else:
        yield Finding(part, "ok", "none beside Ollama; FOOTNOTE_MODELS names further models")


async def _told(settings: Settings, in_use: frozenset[str]) -> list[ProviderHealth]:
    providers = HostedProviders(settings)
    try:
        return await providers.health(in_use)
    finally:
        await providers.close()


def _provider(part: str, told: ProviderHealth, models: Sequence[str]) -> Finding:
    if not told.healthy or told.models is None:
        hint = "Check its address and its key; docs/models.md says which variable holds it."
        return Finding(part, "problem", f"{told.provider}: {told.reason}", hint)
    words = f"{told.provider}: {len(told.models)} models in {told.latency_ms or 0:.0f} ms"
    # Azure lists what could be deployed, not what is.
    missing = [] if told.kind == "azure" else [one for one in models if one not in told.models]
    if missing:
        words = f"{words}, without {', '.join(missing)}"
        return Finding(part, "problem", words, "Correct `served_as`, or remove the model.")
    return Finding(part, "ok", f"{words}; has {', '.join(models)}" if models else words)


def _port(settings: Settings) -> Generator[Finding]:
    with suppress(StartupError), open_listener(settings):
        yield Finding("port", "ok", f"{settings.host}:{settings.port} is free")
        return
    if is_footnote(base_url(settings)):
        yield Finding("port", "ok", f"Footnote answers at {base_url(settings)}")
        return
    with open_listener(settings):
        pass


CHECKS = (
    _python,
    _home,
    _database,
    _redis,
    _embedding_model,
    _reranker,
    _language_model,
    _model_providers,
    _port,
)
