"""What is said of a language model and of who serves it: in settings, stored, and on the wire."""

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Tier = Literal["realtime", "interactive", "orchestration"]
"""Small and at once; the ordinary answer; the best there is, slow and dear."""
TIERS: tuple[Tier, ...] = get_args(Tier)

ProviderKind = Literal["ollama", "openai", "deepseek", "azure", "anthropic", "openai-compatible"]
Capability = Literal["json", "tools", "vision", "thinking"]
Variant = Literal["fine-tuned", "lora"]

AUTO = "auto"
EXTRACTIVE = "extractive"
"""As a model's name it asks for the passages' own sentences."""
OLLAMA = "ollama"

MAX_NAME_CHARS = 200
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$"
_PROVIDER_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")

ModelName = Annotated[str, Field(pattern=_NAME, max_length=MAX_NAME_CHARS)]
Amount = Annotated[
    Decimal, Field(ge=0, le=1_000_000, max_digits=18, decimal_places=6, allow_inf_nan=False)
]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ProviderSpec(_Spec):
    """Who serves models. Its key is in the environment only; there is no field for it.

    `local`: what it is sent stays with the operator, so it is no cloud. Only a server of one's own
    can say so.
    """

    kind: ProviderKind
    url: str = ""
    api_version: str = "2024-10-21"
    local: bool = False

    @model_validator(mode="before")
    @classmethod
    def _no_key(cls, given: Any) -> Any:
        if isinstance(given, dict) and {"key", "api_key", "token"} & given.keys():
            raise ValueError("a key stands in the environment only, as FOOTNOTE_NAME_API_KEY")
        return given  # pyright: ignore[reportUnknownVariableType]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.kind in ("azure", "openai-compatible") and not self.url:
            raise ValueError(f"a provider of the kind {self.kind} needs its url")
        if self.url and not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", self.url):
            raise ValueError("url is not an http or https address without credentials")
        if self.kind == "ollama":
            raise ValueError("Ollama servers are given by FOOTNOTE_OLLAMA_URLS")
        if self.local and self.kind != "openai-compatible":
            raise ValueError(f"{self.kind} is not local")
        return self


WELL_KNOWN_PROVIDERS = {
    "openai": ProviderSpec(kind="openai", url="https://api.openai.com/v1"),
    "deepseek": ProviderSpec(kind="deepseek", url="https://api.deepseek.com"),
    "anthropic": ProviderSpec(kind="anthropic", url="https://api.anthropic.com"),
}


class ModelSpec(_Spec):
    """A model that questions can be answered by; `name` is how requests name it.

    `served_as` is the provider's name for it (Azure: the deployment), where that differs. Prices
    are in the currency of the settings: per million tokens, or per hour of a busy slot. A
    variant falls back on its `baseline`.
    """

    name: ModelName
    provider: Annotated[str, Field(max_length=40)] = OLLAMA
    tier: Tier = "interactive"
    served_as: Annotated[str, Field(pattern=rf"^$|{_NAME}", max_length=MAX_NAME_CHARS)] = ""
    context_tokens: Annotated[int, Field(ge=512, le=10_000_000)] | None = Field(
        default=None, description="Left out: FOOTNOTE_GENERATION_CONTEXT_TOKENS."
    )
    prompt_price_per_million: Amount = Decimal(0)
    completion_price_per_million: Amount = Decimal(0)
    cached_price_per_million: Amount | None = None
    price_per_hour: Amount = Decimal(0)
    capabilities: tuple[Capability, ...] = ()
    variant: Variant | None = None
    baseline: ModelName | None = None

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, name: str) -> str:
        if name in (AUTO, EXTRACTIVE):
            raise ValueError(f"{name!r} has a meaning of its own")
        return name

    @field_validator("capabilities")
    @classmethod
    def _once_each(cls, given: tuple[Capability, ...]) -> tuple[Capability, ...]:
        return tuple(sorted(set(given)))

    @model_validator(mode="after")
    def _variant_of_something(self) -> Self:
        if (self.variant is None) != (self.baseline is None):
            raise ValueError("a variant names its baseline, and only a variant has one")
        return self

    @property
    def upstream_name(self) -> str:
        """What its provider calls it."""
        return self.served_as or self.name


def check_provider_names(names: Iterable[str]) -> None:
    """Raise ValueError for a name that no variable of the environment could be named after."""
    for name in names:
        if not _PROVIDER_NAME.fullmatch(name) or name == OLLAMA:
            raise ValueError(
                f"{name!r} cannot be a provider's name: small letters, digits and -, not ollama"
            )


def check_models(models: Sequence[ModelSpec], providers: Iterable[str]) -> None:
    """Raise ValueError where names repeat, a provider is unknown, or a baseline is none."""
    known, names = set(providers), [one.name for one in models]
    baselines = {one.name: one.baseline for one in models}
    for model in models:
        if names.count(model.name) > 1:
            raise ValueError(f"the model {model.name} is given twice")
        if model.provider not in known:
            raise ValueError(
                f"{model.name} names the provider {model.provider!r};"
                f" known are {', '.join(sorted(known))}"
            )
        if model.baseline is None:
            continue
        if model.baseline not in baselines:
            raise ValueError(f"{model.name} falls back on {model.baseline}, which is no model here")
        if baselines[model.baseline] is not None:
            raise ValueError(f"{model.name} falls back on {model.baseline}, a variant itself")
