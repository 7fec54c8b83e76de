"""Every setting and its default.

Environment variables `FOOTNOTE_*` win over `config/{FOOTNOTE_ENV}.yaml`, which wins over the
defaults below. In the YAML files `${VAR}` and `${VAR:-default}` are expanded.
"""

import os
import re
from decimal import Decimal
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from app.errors import StartupError
from app.language_models import (
    OLLAMA,
    WELL_KNOWN_PROVIDERS,
    ModelSpec,
    ProviderSpec,
    Tier,
    check_models,
    check_provider_names,
)

BUNDLED_MODEL = "all-MiniLM-L6-v2"
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def expand_variables(text: str) -> str:
    """Replace `${VAR}` and `${VAR:-default}`; a variable without value or default is an error."""

    def value(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        if name in os.environ:
            return os.environ[name]
        if default is None:
            raise StartupError(
                f"The configuration file names ${{{name}}}, which is not set.",
                hint=f"Set {name}, or write ${{{name}:-default}}.",
            )
        return default

    return _VARIABLE.sub(value, text)


def settings_file() -> Path:
    """`config/{FOOTNOTE_ENV}.yaml` beside the working directory, whether there is one or not."""
    name = os.environ.get("FOOTNOTE_ENV", "dev")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise StartupError("FOOTNOTE_ENV must be a plain name, such as dev or production.")
    return Path("config") / f"{name}.yaml"


class _EnvironmentFile(PydanticBaseSettingsSource):
    """`config/{FOOTNOTE_ENV}.yaml` beside the working directory, when there is one."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        raise AssertionError("values come from __call__")  # pragma: no cover

    def __call__(self) -> dict[str, Any]:
        path = settings_file()
        if not path.is_file():
            return {}
        try:
            loaded: Any = yaml.safe_load(expand_variables(path.read_text("utf-8"))) or {}
        except yaml.YAMLError as error:
            raise StartupError(f"{path} is not YAML: {error}.") from None
        if not isinstance(loaded, dict):
            raise StartupError(f"{path} must hold a mapping of settings.")
        return {str(key).lower(): value for key, value in loaded.items() if value is not None}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _expand_user(path: Path) -> Path:
    return path.expanduser().absolute()


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="FOOTNOTE_", env_ignore_empty=True, extra="forbid")

    # where things live
    home: Annotated[Path, AfterValidator(_expand_user)] = Path("~/.footnote")
    env: str = "dev"
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8008

    # services; empty means the embedded part
    database_url: SecretStr | None = None
    row_level_security: Literal["on", "off"] = "on"
    redis_url: SecretStr | None = None
    ollama_urls: Annotated[tuple[str, ...], NoDecode] = ()

    # models
    model: str = "llama3.1:8b"
    models: tuple[ModelSpec, ...] = ()
    providers: dict[str, ProviderSpec] = {}
    tier_fallbacks: dict[Tier, tuple[Tier, ...]] = {}
    embedding_model: str = BUNDLED_MODEL
    embedding_runtime: Literal["auto", "onnx", "torch"] = "auto"
    embedding_batch_tokens: Annotated[int, Field(ge=1)] = 256
    query_int8: bool = True
    embedding_models_loaded: Annotated[int, Field(ge=1)] = 3

    # reranking
    reranker: str = ""
    reranker_model: str = ""
    reranker_api_key: SecretStr | None = None
    reranker_runtime: Literal["auto", "onnx", "torch"] = "auto"
    reranker_int8: bool = True
    reranker_max_tokens: Annotated[int, Field(ge=16, le=8192)] = 160
    rerank_candidates: Annotated[int, Field(ge=2, le=100)] = 20
    rerank_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    rerank_timeout_seconds: Annotated[float, Field(gt=0)] = 1.0
    rerank_queue_size: Annotated[int, Field(ge=0)] = 16

    # rewriting queries
    rewrite_timeout_seconds: Annotated[float, Field(gt=0)] = 3.0

    # access
    auth: Literal["auto", "on", "off"] = "auto"
    rate_limit: str = "30000/minute"
    upload_rate_limit: str = "6000/minute"

    # bounds
    max_upload_bytes: Annotated[int, Field(ge=1)] = 64 * 1024 * 1024
    max_body_bytes: Annotated[int, Field(ge=1)] = 1024 * 1024
    max_query_chars: Annotated[int, Field(ge=1)] = 8192
    max_limit: Annotated[int, Field(ge=1)] = 200
    request_timeout_seconds: Annotated[float, Field(gt=0)] = 30.0
    shutdown_grace_seconds: Annotated[float, Field(ge=0)] = 20.0
    database_pool_size: Annotated[int, Field(ge=1)] = 10
    database_pool_waiters: Annotated[int, Field(ge=1)] = 200
    database_timeout_seconds: Annotated[float, Field(gt=0)] = 10.0
    redis_timeout_seconds: Annotated[float, Field(gt=0)] = 0.05
    embedding_threads: Annotated[int, Field(ge=1)] | None = None
    embedding_waiters: Annotated[int, Field(ge=1)] = 256

    # parsing: limits of the disposable child
    parse_timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    parse_memory_bytes: Annotated[int, Field(ge=64 * 1024 * 1024)] = 2 * 1024**3
    parse_output_bytes: Annotated[int, Field(ge=1024)] = 64 * 1024 * 1024

    # chunking
    chunk_tokens: Annotated[int, Field(ge=16)] = 200

    # sources beyond folders
    source_allow_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()
    source_contact: Annotated[str, Field(pattern=r"^[!-~ ]*$", max_length=200)] = ""
    source_timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    source_pause_seconds: Annotated[float, Field(ge=0)] = 0.1
    source_buckets: Annotated[tuple[str, ...], NoDecode] = ()
    sitemap_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    sitemap_max_urls: Annotated[int, Field(ge=1)] = 50_000
    bucket_max_objects: Annotated[int, Field(ge=1)] = 1_000_000
    s3_endpoint: str = ""
    s3_region: str = ""
    s3_access_key_id: SecretStr | None = None
    s3_secret_access_key: SecretStr | None = None

    # generation
    generation_connect_timeout_seconds: Annotated[float, Field(gt=0)] = 2.0
    generation_first_token_timeout_seconds: Annotated[float, Field(gt=0)] = 120.0
    generation_stall_timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    generation_max_tokens: Annotated[int, Field(ge=1)] = 512
    generation_context_tokens: Annotated[int, Field(ge=512)] = 4096
    generation_queue_size: Annotated[int, Field(ge=0)] = 64
    generation_queue_timeout_seconds: Annotated[float, Field(gt=0)] = 30.0
    generation_batch_timeout_seconds: Annotated[float, Field(gt=0)] = 300.0
    generation_key_concurrency: Annotated[int, Field(ge=0)] = 0
    generation_key_tokens_per_minute: Annotated[int, Field(ge=0)] = 0
    answer_passages: Annotated[int, Field(ge=1, le=50)] = 8
    history_turns: Annotated[int, Field(ge=0)] = 6
    history_chars: Annotated[int, Field(ge=0)] = 4000

    # costs
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "USD"
    monthly_budget: Annotated[Decimal, Field(ge=0, lt=10**11)] | None = None
    reference_prompt_price_per_million: Annotated[Decimal, Field(ge=0, lt=10**6)] = Decimal(0)
    reference_completion_price_per_million: Annotated[Decimal, Field(ge=0, lt=10**6)] = Decimal(0)

    # caches
    cache_embeddings: bool = True
    cache_chunks: bool = True
    cache_answers: bool = True
    cache_embeddings_ttl_seconds: Annotated[int, Field(gt=0)] = 604800
    cache_chunks_ttl_seconds: Annotated[int, Field(gt=0)] = 2592000
    cache_answers_ttl_seconds: Annotated[int, Field(gt=0)] = 86400
    cache_embeddings_bytes: Annotated[int, Field(ge=0)] = 64 * 1024 * 1024
    cache_chunks_bytes: Annotated[int, Field(ge=0)] = 64 * 1024 * 1024
    cache_answers_bytes: Annotated[int, Field(ge=0)] = 64 * 1024 * 1024
    cache_entry_bytes: Annotated[int, Field(ge=0)] = 256 * 1024
    cache_tenant_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    cache_paraphrases: bool = False
    cache_paraphrase_similarity: Annotated[float, Field(gt=0, le=1)] = 0.95
    cache_paraphrase_judged_share: Annotated[float, Field(ge=0, le=1)] = 0.1

    # logging
    log_format: Literal["auto", "console", "json"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _EnvironmentFile(settings_cls)

    @field_validator(
        "ollama_urls", "source_allow_networks", "source_buckets", "sitemap_hosts", mode="before"
    )
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @model_validator(mode="after")
    def _no_open_door(self) -> "Settings":
        if self.auth == "off" and not self.is_loopback:
            raise ValueError(
                f"FOOTNOTE_AUTH=off is accepted on a loopback address only, not on {self.host}"
            )
        return self

    @model_validator(mode="after")
    def _models_that_fit(self) -> "Settings":
        check_provider_names(self.providers)
        check_models(self.all_models, [OLLAMA, *self.all_providers])
        return self

    @property
    def all_models(self) -> tuple[ModelSpec, ...]:
        """In the order in which they are tried: `model`, unless `models` says more of it, first."""
        if any(one.name == self.model for one in self.models):
            return self.models
        return (ModelSpec(name=self.model), *self.models)

    @property
    def all_providers(self) -> dict[str, ProviderSpec]:
        """By name, those whose address everybody knows included; Ollama's servers are no part."""
        return {**WELL_KNOWN_PROVIDERS, **self.providers}

    @property
    def is_loopback(self) -> bool:
        return self.host in LOOPBACK_HOSTS

    @property
    def auth_required(self) -> bool:
        return self.auth == "on" or (self.auth == "auto" and not self.is_loopback)

    @cached_property
    def model_cache(self) -> Path:
        """Where exported models are kept."""
        return self.home / "models"


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment; raises StartupError that names each wrong value."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        lines = [
            _named(item["loc"]) + item["msg"].removeprefix("Value error, ")
            for item in error.errors()
        ]
        raise StartupError(
            "; ".join(lines), hint="Correct these settings; docs/configuration.md lists them all."
        ) from None
    except SettingsError as error:
        # Its own words repeat nothing of the value, which may be a secret.
        raise StartupError(
            f"{error}.", hint="Lists and mappings are given as JSON; see docs/configuration.md."
        ) from None


def _named(place: tuple[int | str, ...]) -> str:
    """Which setting is meant, and where in it: `FOOTNOTE_MODELS, 0, tier: `."""
    if not place:
        return ""
    return ", ".join([f"FOOTNOTE_{str(place[0]).upper()}", *map(str, place[1:])]) + ": "
