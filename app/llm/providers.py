"""Opens every provider that the settings name, and gives the chat model of a registered model.

Keys come from the environment and go nowhere else: `FOOTNOTE_NAME_API_KEY`, for the well-known
ones also the variable that their own tools read.
"""

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from app.config import Settings
from app.costs.ledger import Ledger, Listing
from app.costs.prices import Price
from app.errors import GenerationUnavailable
from app.language_models import OLLAMA, ModelSpec, ProviderSpec
from app.llm.base import ChatModel, GenerationOptions
from app.llm.hosted import (
    THINKING_TOKENS,
    Fault,
    HostedProvider,
    Patience,
    ProviderHealth,
    Wire,
)
from app.llm.metering import MeteredModel
from app.llm.pool import GenerationPool
from app.llm.registry import generation_options

COMMON_KEY_VARIABLES = {
    "openai": "OPENAI_API_KEY",
    "deepseek": "DEEPSEEK_API_KEY",
    "azure": "AZURE_OPENAI_API_KEY",
    "anthropic": "ANTHROPIC_API_KEY",
}

Open = Callable[[ProviderSpec, str | None, float], Wire]


class HostedProviders:
    """The providers beside Ollama, those of the settings and the well-known ones."""

    def __init__(self, settings: Settings, environment: Mapping[str, str] = os.environ) -> None:
        self._named = frozenset(settings.providers)
        self._specs = settings.all_providers
        self._environment = environment
        self._connect_timeout_seconds = settings.generation_connect_timeout_seconds
        patience = Patience(
            first_token_seconds=settings.generation_first_token_timeout_seconds,
            stall_seconds=settings.generation_stall_timeout_seconds,
        )
        self._hosted = {
            name: HostedProvider(name, spec.kind, partial(self._open, name, spec), patience)
            for name, spec in self._specs.items()
        }

    def obstacle(self, provider: str) -> str | None:
        """Why nobody need try this provider; None when it can be tried."""
        spec = self._specs.get(provider)
        if spec is None:
            return f"the provider {provider} is not configured any more"
        if self._key(provider, spec) is None and not spec.local:
            return f"no key: {key_variable(provider)} is not set"
        return None

    def is_local(self, provider: str) -> bool:
        spec = self._specs.get(provider)
        return spec is not None and spec.local

    def model(self, model: ModelSpec) -> ChatModel:
        return self._hosted[model.provider].model(model.upstream_name, thinks=_thinks(model))

    async def health(self, in_use: frozenset[str]) -> list[ProviderHealth]:
        """Every provider that the settings name, that has a key, or is `in_use`, side by side."""
        asked = self._configured(in_use)
        return list(await asyncio.gather(*(hosted.health() for hosted in asked)))

    async def warm_up(self, in_use: frozenset[str]) -> None:
        """Import what the same providers need, before anybody waits: it holds everything up."""
        for hosted in self._configured(in_use):
            await hosted.warm_up()

    async def close(self) -> None:
        for hosted in self._hosted.values():
            await hosted.close()

    def _configured(self, in_use: frozenset[str]) -> list[HostedProvider]:
        return [
            hosted
            for name, hosted in self._hosted.items()
            if name in self._named or name in in_use or self._environment.get(key_variable(name))
        ]

    def _key(self, name: str, spec: ProviderSpec) -> str | None:
        common = COMMON_KEY_VARIABLES.get(spec.kind) if spec.kind == name else None
        return (
            self._environment.get(key_variable(name))
            or (self._environment.get(common) if common else None)
            or None
        )

    def _open(self, name: str, spec: ProviderSpec) -> Wire:
        key = self._key(name, spec)
        if key is None and not spec.local:
            raise Fault("no_key", f"no key: {key_variable(name)} is not set")
        try:
            return _wire(spec, key, self._connect_timeout_seconds)
        except ImportError:
            raise Fault(
                "no_package",
                "the package for it is not installed",
                hint="Install the packages of the extra: pip install 'footnote[cloud]'.",
            ) from None


class Providers:
    """Implements ModelSource: the pool of Ollama servers and the hosted providers, all metered."""

    def __init__(
        self,
        settings: Settings,
        pool: GenerationPool | None,
        hosted: HostedProviders,
        ledger: Ledger,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self.hosted = hosted
        self._ledger = ledger

    def obstacle(self, model: ModelSpec) -> str | None:
        """Why nobody need try this model; None when it can be tried."""
        if model.provider != OLLAMA:
            return self.hosted.obstacle(model.provider)
        return None if self._pool else "no FOOTNOTE_OLLAMA_URLS"

    def needs_leave(self, model: ModelSpec) -> bool:
        """Whether what this model is asked leaves the operator's machines, as far as is known."""
        return model.provider != OLLAMA and not self.hosted.is_local(model.provider)

    def open(self, model: ModelSpec) -> ChatModel:
        """The chat model, whose generations are booked.

        Raises GenerationUnavailable where there is an obstacle.
        """
        obstacle = self.obstacle(model)
        if obstacle is not None:
            raise GenerationUnavailable(
                f"{model.name} cannot be asked: {obstacle}.",
                hint="See docs/models.md; `footnote doctor` checks every provider.",
            )
        listing = Listing(
            model.name,
            price_of(model),
            tier=model.tier,
            provider=model.provider,
            is_local=not self.needs_leave(model),
        )
        return MeteredModel(self._unmetered(model), listing, self._ledger)

    def options(self, model: ModelSpec) -> GenerationOptions:
        """The options of every request to this model.

        Providers count what a thinking model writes for itself with its answer.
        """
        options = generation_options(self._settings, model.context_tokens)
        if not _thinks(model):
            return options
        return replace(options, max_tokens=options.max_tokens + THINKING_TOKENS)

    def _unmetered(self, model: ModelSpec) -> ChatModel:
        if model.provider == OLLAMA and self._pool is not None:
            return self._pool.for_model(model.upstream_name)
        return self.hosted.model(model)


def key_variable(provider: str) -> str:
    """The variable of the environment that holds a provider's key."""
    return f"FOOTNOTE_{provider.upper().replace('-', '_')}_API_KEY"


def price_of(model: ModelSpec) -> Price:
    """What the registry says that the model costs."""
    return Price(
        prompt_per_million=model.prompt_price_per_million,
        completion_per_million=model.completion_price_per_million,
        cached_per_million=model.cached_price_per_million,
        per_hour=model.price_per_hour,
    )


def _thinks(model: ModelSpec) -> bool:
    """Ollama models are asked not to think, so nothing has to be left for it."""
    return model.provider != OLLAMA and "thinking" in model.capabilities


def _wire(spec: ProviderSpec, key: str | None, connect_timeout_seconds: float) -> Wire:
    # An optional package each, and seconds to import.
    if spec.kind == "anthropic":
        from app.llm.anthropic import AnthropicWire  # noqa: PLC0415

        return AnthropicWire(spec, key or "", connect_timeout_seconds)
    from app.llm.openai_compatible import OpenAIWire  # noqa: PLC0415

    return OpenAIWire(spec, key, connect_timeout_seconds)
