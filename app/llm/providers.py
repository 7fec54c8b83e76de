"""Opens every provider that the settings name, and gives the chat model of a registered model.

Keys come from the environment and go nowhere else: `FOOTNOTE_NAME_API_KEY`, for the well-known
ones also the variable that their own tools read.
"""

import asyncio
import os
from collections.abc import Callable, Mapping
from functools import partial

from app.config import Settings
from app.costs.prices import Price
from app.errors import GenerationUnavailable
from app.language_models import OLLAMA, ModelSpec, ProviderSpec
from app.llm.base import ChatModel, GenerationOptions
from app.llm.hosted import Fault, HostedProvider, Patience, ProviderHealth, Wire
from app.llm.pool import GenerationPool
from app.llm.registry import generation_options

COMMON_KEY_VARIABLES = {
    "openai": "OPENAI_API_KEY",
    "deepseek": "DEEPSEEK_API_KEY",
    "azure": "AZURE_OPENAI_API_KEY",
    "anthropic": "ANTHROPIC_API_KEY",
}

Open = Callable[[ProviderSpec, str | None, float], Wire]


class Providers:
    """The pool of Ollama servers and the hosted providers. Connects to nothing before it is asked.

    `needs_leave(model)` tells of models that see what is asked outside of the operator's own
    machines; whether a tenant allows that is for the caller to know.
    """

    def __init__(
        self,
        settings: Settings,
        pool: GenerationPool | None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._specs = settings.all_providers
        self._environment = environment
        patience = Patience(
            first_token_seconds=settings.generation_first_token_timeout_seconds,
            stall_seconds=settings.generation_stall_timeout_seconds,
        )
        self._hosted = {
            name: HostedProvider(name, spec.kind, partial(self._open, name, spec), patience)
            for name, spec in self._specs.items()
        }

    def obstacle(self, model: ModelSpec) -> str | None:
        """Why nobody need try this model now; None when it can be tried."""
        if model.provider == OLLAMA:
            return None if self._pool else "no FOOTNOTE_OLLAMA_URLS"
        spec = self._specs.get(model.provider)
        if spec is None:
            return f"the provider {model.provider} is not configured any more"
        if self._key(model.provider, spec) is None and not spec.local:
            return f"no key: {key_variable(model.provider)} is not set"
        return None

    def needs_leave(self, model: ModelSpec) -> bool:
        """Whether what this model is asked leaves the operator's machines, as far as is known."""
        spec = self._specs.get(model.provider)
        return model.provider != OLLAMA and not (spec is not None and spec.local)

    def open(self, model: ModelSpec) -> ChatModel:
        """The chat model; raises GenerationUnavailable where there is an obstacle."""
        obstacle = self.obstacle(model)
        if obstacle is not None:
            raise GenerationUnavailable(
                f"{model.name} cannot be asked: {obstacle}.",
                hint="See docs/models.md; `footnote doctor` checks every provider.",
            )
        if model.provider == OLLAMA and self._pool is not None:
            return self._pool.for_model(model.upstream_name)
        hosted = self._hosted[model.provider]
        return hosted.model(model.upstream_name, thinks="thinking" in model.capabilities)

    def options(self, model: ModelSpec) -> GenerationOptions:
        """The options of every request to this model."""
        return generation_options(self._settings, model.context_tokens)

    async def health(self, in_use: frozenset[str]) -> list[ProviderHealth]:
        """Every hosted provider that is configured or `in_use`, asked side by side."""
        asked = [
            hosted
            for name, hosted in self._hosted.items()
            if name in self._settings.providers or name in in_use or self._has_key(name)
        ]
        return list(await asyncio.gather(*(hosted.health() for hosted in asked)))

    async def close(self) -> None:
        for hosted in self._hosted.values():
            await hosted.close()

    def _has_key(self, name: str) -> bool:
        return bool(self._environment.get(key_variable(name)))

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
            return _wire(spec, key, self._settings.generation_connect_timeout_seconds)
        except ImportError:
            raise Fault(
                "no_package",
                "the package for it is not installed",
                hint="Install the packages of the extra: pip install 'footnote[cloud]'.",
            ) from None


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


def _wire(spec: ProviderSpec, key: str | None, connect_timeout_seconds: float) -> Wire:
    # An optional package each, and seconds to import.
    if spec.kind == "anthropic":
        from app.llm.anthropic import AnthropicWire  # noqa: PLC0415

        return AnthropicWire(spec, key or "", connect_timeout_seconds)
    from app.llm.openai_compatible import OpenAIWire  # noqa: PLC0415

    return OpenAIWire(spec, key, connect_timeout_seconds)
