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
from app.language_models import OLLAMA
from app.listening import base_url, is_footnote, open_listener
from app.llm.catalogue import REGISTERED, ModelInUse
from app.llm.following import CHANGES, ServerChange, wanted_servers
from app.llm.hosted import ProviderHealth
from app.llm.providers import HostedProviders
from app.llm.registry import parse_instances
from app.search.rerankers import open_own, rerankers_of
from reranker.base import RerankerUnavailable

MINIMUM_PYTHON = (3, 11)
ASK_TIMEOUT_SECONDS = 5.0
GIGABYTE = 1024**3
MODELS_SHOWN = 10

Verdict = Literal["ok", "note", "problem"]
STYLES: dict[Verdict, str] = {"ok": "green", "note": "yellow", "problem": "bold red"}


@dataclass(frozen=True, slots=True)
class Finding:
    part: str
    verdict: Verdict
    words: str
    hint: str = ""


@dataclass(slots=True)
class Examined:
    """What is examined, and what its database says of models and of their servers."""

    settings: Settings
    registered: Sequence[ModelInUse] = ()
    changes: Sequence[ServerChange] = ()

    def models_of(self, provider: str) -> list[str]:
        """What the provider calls its models, those of the configuration first."""
        configured = [
            one.upstream_name for one in self.settings.all_models if one.provider == provider
        ]
        registered = [one.upstream_name for one in self.registered if one.provider == provider]
        return list(dict.fromkeys([*configured, *sorted(registered)]))


def examine(settings: Settings, *, as_json: bool) -> bool:
    """Print what is found; whether all is well."""
    about = Examined(settings)
    findings = [finding for check in CHECKS for finding in _examined(check, about)]
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
    check: Callable[[Examined], Generator[Finding]], about: Examined
) -> Generator[Finding]:
    part = check.__name__.strip("_").replace("_", " ")
    try:
        yield from check(about)
    except FootnoteError as error:
        yield Finding(part, "problem", error.detail, error.hint)


# --- the checks -----------------------------------------------------------------------------------


def _python(_about: Examined) -> Generator[Finding]:
    recent = sys.version_info >= MINIMUM_PYTHON
    words = f"{platform.python_version()} on {platform.platform(terse=True)}"
    yield Finding(
        "python",
        "ok" if recent else "problem",
        words,
        "" if recent else "Footnote needs Python 3.11 or later.",
    )


def _home(about: Examined) -> Generator[Finding]:
    free_bytes = shutil.disk_usage(prepare_home(about.settings.home)).free
    yield Finding(
        "home",
        "ok" if free_bytes > GIGABYTE else "note",
        f"{about.settings.home}, {free_bytes / GIGABYTE:.1f} GB free",
    )


def _database(about: Examined) -> Generator[Finding]:
    settings = about.settings
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
            about.registered = [ModelInUse(*row) for row in connection.execute(REGISTERED)]
            about.changes = [ServerChange(*row) for row in connection.execute(CHANGES)]
        engine.dispose()
    yield Finding("database", "ok", f"{kind}; PostgreSQL {postgres}, pgvector {pgvector}")


def _redis(about: Examined) -> Generator[Finding]:
    settings = about.settings
    if settings.redis_url is None:
        embedded = EmbeddedRedis(settings.home)
        try:
            if embedded.start() is None:
                words = "none on this machine; caches and limits live in each process"
                yield Finding("redis", "note", words, "Install redis or valkey to share them.")
            else:
                yield Finding("redis", "ok", f"embedded; {embedded.kind} {embedded.version}")
        finally:
            embedded.stop()
        return
    try:
        with redis.Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
            settings.redis_url.get_secret_value(),
            socket_timeout=ASK_TIMEOUT_SECONDS,
            socket_connect_timeout=ASK_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
        ) as client:
            server = client.info("server")  # pyright: ignore[reportUnknownMemberType]
    except (redis.RedisError, ValueError) as error:
        raise StartupError(
            f"Redis cannot be reached: {error}.", hint="Check FOOTNOTE_REDIS_URL."
        ) from error
    version = str(server["redis_version"])
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < MINIMUM_REDIS:
        raise StartupError(
            f"Redis {version} is too old.", hint="Use Redis 6.2 or later, or Valkey."
        )
    yield Finding("redis", "ok", f"external; Redis {version}")


def _embedding_model(about: Examined) -> Generator[Finding]:
    embedder = open_embedder(about.settings)
    embedder.embed(["Does it run?"], "query")
    yield Finding(
        "embedding model",
        "ok",
        f"{embedder.name} on {embedder.runtime}, {embedder.dimensions} dimensions",
    )


def _reranker(about: Examined) -> Generator[Finding]:
    rerankers = rerankers_of(about.settings)
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


def _language_model(about: Examined) -> Generator[Finding]:
    part, urls = "language model", about.settings.ollama_urls
    registered = [one.upstream_name for one in about.registered if one.provider == OLLAMA]
    if not urls and registered:
        words = f"none, but registered are {', '.join(sorted(registered))}"
        yield Finding(part, "problem", words, "Set FOOTNOTE_OLLAMA_URLS, or remove these models.")
    elif not urls:
        words = "none; answers are quoted from the passages, not written"
        yield Finding(part, "note", words, "Set FOOTNOTE_OLLAMA_URLS to use one.")
    wanted = wanted_servers(parse_instances(urls), about.changes) if urls else []
    found = [_ollama(url, slots, about.models_of(OLLAMA)) for url, slots, _ in wanted]
    yield from found
    if len(found) > 1:
        yield _counted(part, [one.verdict == "ok" for one in found])


def _ollama(url: str, slots: int, wanted: Sequence[str]) -> Finding:
    part = "language model"
    started = perf_counter()
    try:
        reply = httpx.get(f"{url.rstrip('/')}/api/tags", timeout=ASK_TIMEOUT_SECONDS)
        names = {str(one["name"]) for one in reply.raise_for_status().json()["models"]}
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        words = f"{url} does not answer as Ollama does: {error}"
        return Finding(part, "problem", words, "Start Ollama there, or correct the address.")
    took_ms = (perf_counter() - started) * 1000
    missing = [one for one in wanted if not names & {one, f"{one}:latest"}]
    if missing:
        words = f"{url} does not have {', '.join(missing)}"
        pulls = "; ".join(f"ollama pull {one}" for one in missing)
        return Finding(part, "problem", words, f"Run `{pulls}` there.")
    words = f"{url} has {', '.join(wanted)} ({took_ms:.0f} ms); {slots} at a time"
    return Finding(part, "ok", words)


def _model_providers(about: Examined) -> Generator[Finding]:
    part, settings = "model providers", about.settings
    in_use = {one.provider for one in (*settings.models, *about.registered)} - {OLLAMA}
    told = asyncio.run(_told(settings, frozenset(in_use)))
    found = [_provider(part, one, about.models_of(one.provider)) for one in told]
    for gone in sorted(in_use - settings.all_providers.keys()):
        words = f"{gone} is not configured, but registered are {', '.join(about.models_of(gone))}"
        found.append(
            Finding(part, "problem", words, "Configure it under `providers`, or remove them.")
        )
    yield from found
    if found:
        yield _counted(part, [one.verdict == "ok" for one in found])
    else:
        yield Finding(part, "ok", "none beside Ollama; FOOTNOTE_MODELS names further models")


def _counted(part: str, healthy: Sequence[bool]) -> Finding:
    verdict = "ok" if all(healthy) else "problem"
    return Finding(part, verdict, f"{sum(healthy)} of {len(healthy)} healthy")


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
    words = f"{told.provider}: {_listed(told.models)} in {told.latency_ms or 0:.0f} ms"
    # Azure lists what could be deployed, not what is.
    missing = [] if told.kind == "azure" else [one for one in models if one not in told.models]
    if missing:
        words = f"{words}, without {', '.join(missing)}"
        return Finding(part, "problem", words, "Correct `served_as`, or remove the model.")
    return Finding(part, "ok", f"{words}; has {', '.join(models)}" if models else words)


def _listed(models: Sequence[str]) -> str:
    more = ", …" if len(models) > MODELS_SHOWN else ""
    return f"{len(models)} models ({', '.join(models[:MODELS_SHOWN])}{more})"


def _port(about: Examined) -> Generator[Finding]:
    settings = about.settings
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
