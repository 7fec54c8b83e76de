"""Which model answers: named, of a tier, or chosen by the question; and who comes after it.

`tier_for` and `chain_of` are pure; a `RoutedModel` goes down the chain that they give. Whoever
failed or was left out, and why, is part of the reply.
"""

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from app.config import Settings
from app.errors import (
    BudgetExhausted,
    Forbidden,
    GenerationUnavailable,
    InvalidInput,
    Overloaded,
    Unavailable,
)
from app.language_models import AUTO, EXTRACTIVE, OLLAMA, ModelSpec, Tier
from app.llm.base import (
    UNHURRIED,
    Admission,
    Attempt,
    ChatModel,
    Completion,
    GenerationEvent,
    GenerationOptions,
    Message,
    TextDelta,
)
from app.llm.catalogue import Catalogue
from app.llm.question_kinds import QuestionKind
from app.llm.token_estimate import estimate_tokens
from app.telemetry import GENERATION_FALLBACKS

FALLBACKS: Mapping[Tier, tuple[Tier, ...]] = {
    "realtime": ("interactive",),
    "interactive": ("realtime",),
    "orchestration": ("interactive", "realtime"),
}
"""The tiers that are tried after one; never a dearer kind, unless FOOTNOTE_TIER_FALLBACKS says so.
(Interactive models run where realtime ones do.)"""

FACT_TOKENS = 3000
"""Sources that a small model still reads well, and at once."""
WEIGHTY_TOKENS = 400
"""Below it there is too little to weigh for the best model to be worth its time and price."""
LONG_TOKENS = 12_000
"""Sources so long that putting them together takes the best model, whatever is asked."""

QUOTED = "Answers are the documents' own sentences, word for word."
NO_MODEL = (
    "No language model is configured, so answers are the documents' own sentences, word for word. "
    "Set FOOTNOTE_OLLAMA_URLS to get written answers."
)
CLOUD_FORBIDDEN = "models in the cloud are not allowed for this tenant"

_ARTICLES: Mapping[QuestionKind, str] = {
    "fact": "a fact",
    "explanation": "an explanation",
    "analysis": "an analysis",
}

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Routing:
    """Which tier and model were chosen, and why in words.

    `tried` would have come before whoever answered: they could not be asked, or failed.
    """

    tier: Tier
    model: str
    reason: str
    tried: tuple[Attempt, ...] = ()


class ModelSource(Protocol):
    """Providers, as far as a choice needs them."""

    def obstacle(self, model: ModelSpec) -> str | None: ...
    def needs_leave(self, model: ModelSpec) -> bool: ...
    def open(self, model: ModelSpec) -> ChatModel: ...
    def options(self, model: ModelSpec) -> GenerationOptions: ...


@dataclass(frozen=True, slots=True)
class Chain:
    """Models in the order in which they are tried, and those that cannot be."""

    models: tuple[ModelSpec, ...]
    skipped: tuple[Attempt, ...] = ()


@dataclass(frozen=True, slots=True)
class Offer:
    """What a request may be answered by, before it is known what was found for it.

    `model` is the one that it names, `tier` the one that it asks for; neither: `auto`.
    """

    catalogue: Catalogue
    model: ModelSpec | None = None
    tier: Tier | None = None

    @property
    def is_open(self) -> bool:
        """Whether the kind of the question decides: there is more than one tier to choose from."""
        tiers = {one.tier for one in self.catalogue.specs}
        return self.model is None and self.tier is None and len(tiers) > 1


def tier_for(kind: QuestionKind | None, evidence_tokens: int) -> tuple[Tier, str]:
    """The tier for a question of this kind with so much to read, and why. Pure.

    The kind is None where it could not be found out.
    """
    about = f"about {evidence_tokens:,} tokens of sources"
    if evidence_tokens > LONG_TOKENS:
        return "orchestration", f"{about} to put together"
    if kind is None:
        return "interactive", f"a question of unknown kind, {about}"
    asks = f"asks for {_ARTICLES[kind]}, {about}"
    if kind == "fact" and evidence_tokens <= FACT_TOKENS:
        return "realtime", asks
    if kind == "analysis" and evidence_tokens >= WEIGHTY_TOKENS:
        return "orchestration", asks
    return "interactive", asks


def chain_of(
    catalogue: Catalogue,
    source: ModelSource,
    wanted: ModelSpec | Tier,
    fallbacks: Mapping[Tier, Sequence[Tier]],
) -> Chain:
    """A named model and what it falls back on, or the models of a tier and of those after it."""
    if isinstance(wanted, ModelSpec):
        candidates = _with_baselines([wanted], catalogue)
    else:
        tiers = [wanted, *fallbacks[wanted]]
        candidates = _with_baselines(
            [one for tier in tiers for one in catalogue.specs if one.tier == tier], catalogue
        )
    models: list[ModelSpec] = []
    skipped: list[Attempt] = []
    for model in candidates:
        why = why_not(model, source, cloud_allowed=catalogue.cloud_allowed)
        if why is None:
            models.append(model)
        else:
            skipped.append(Attempt(model.name, why))
    return Chain(tuple(models), tuple(skipped))


def why_not(model: ModelSpec, source: ModelSource, *, cloud_allowed: bool) -> str | None:
    """Why a tenant's questions cannot be answered by this model; None when they can."""
    if source.needs_leave(model) and not cloud_allowed:
        return CLOUD_FORBIDDEN
    return source.obstacle(model)


def _with_baselines(models: Iterable[ModelSpec], catalogue: Catalogue) -> list[ModelSpec]:
    """Each once, a variant followed by its baseline."""
    ordered: dict[str, ModelSpec] = {}
    for model in models:
        ordered.setdefault(model.name, model)
        baseline = catalogue.find(model.baseline) if model.baseline else None
        if baseline is not None:
            ordered.setdefault(baseline.name, baseline)
    return list(ordered.values())


class Tiers:
    """Chooses for a request, once before its search and once after it."""

    def __init__(self, source: ModelSource, settings: Settings) -> None:
        self._source = source
        self._fallbacks: dict[Tier, tuple[Tier, ...]] = {**FALLBACKS, **settings.tier_fallbacks}

    def offer(self, catalogue: Catalogue, model: str, tier: Tier | None) -> Offer | None:
        """What the request asks for; None for the passages' own sentences.

        A model's name counts more than a tier. Raises InvalidInput for a model that is not there.
        """
        if model == EXTRACTIVE:
            return None
        if model == AUTO:
            return Offer(catalogue, tier=tier)
        named = catalogue.find(model)
        if named is None:
            known = ", ".join([AUTO, EXTRACTIVE, *(one.name for one in catalogue.specs)])
            raise InvalidInput(
                f"There is no model {model!r} here.",
                hint=f"Leave `model` out, or use one of: {known}.",
            )
        return Offer(catalogue, named)

    def route(
        self, offer: Offer, kind: QuestionKind | None, evidence_tokens: int
    ) -> "RoutedModel | Nobody":
        """The model that answers, or why the passages' own sentences have to.

        Where the request names a model that may not be asked, and nothing it falls back on may,
        raises Forbidden or GenerationUnavailable instead.
        """
        wanted: ModelSpec | Tier
        if offer.model is not None:
            wanted, reason = offer.model, "the request names it"
        elif offer.tier is not None:
            wanted, reason = offer.tier, f"the request asks for the tier {offer.tier}"
        elif offer.is_open:
            wanted, reason = tier_for(kind, evidence_tokens)
        else:
            models = offer.catalogue.specs
            wanted = models[0].tier if models else "interactive"
            reason = "the only tier that there is"
        chain = chain_of(offer.catalogue, self._source, wanted, self._fallbacks)
        if not chain.models:
            if offer.model is not None:
                raise _refusal(chain)
            return Nobody(chain.skipped)
        first = chain.models[0]
        if isinstance(wanted, str) and first.tier != wanted:
            reason = f"{reason}; no model of the tier {wanted} can be asked"
        elif isinstance(wanted, ModelSpec) and first.name != wanted.name:
            reason = f"the baseline of {wanted.name}, which the request names"
        routing = Routing(first.tier, first.name, reason, chain.skipped)
        return RoutedModel(self._source, chain.models, routing)


@dataclass(frozen=True, slots=True)
class Nobody:
    """No model can be asked; `skipped` were left out, none where none is configured."""

    skipped: tuple[Attempt, ...]

    @property
    def notice(self) -> str:
        if not self.skipped:
            return NO_MODEL
        return f"No language model may be asked ({_said(self.skipped)}). {QUOTED}"


def _refusal(chain: Chain) -> Forbidden | GenerationUnavailable:
    said = _said(chain.skipped)
    if any(one.reason == CLOUD_FORBIDDEN for one in chain.skipped):
        return Forbidden(
            f"The model may not be asked ({said}).",
            hint="An admin of the tenant allows it with `footnote models chat cloud on`.",
        )
    return GenerationUnavailable(
        f"The model cannot be asked ({said}).", hint="`footnote doctor` checks every provider."
    )


def _said(attempts: Iterable[Attempt]) -> str:
    return "; ".join(f"{one.model}: {one.reason}" for one in attempts)


class RoutedModel:
    """A ChatModel that goes down a chain until a model gives text.

    After the first text nobody takes over: what was read cannot be taken back.
    """

    def __init__(self, source: ModelSource, models: Sequence[ModelSpec], routing: Routing) -> None:
        self._source = source
        self._models = models
        self.routing = routing

    @property
    def name(self) -> str:
        return self.routing.model

    @property
    def options(self) -> GenerationOptions:
        """Those of the chosen model; a prompt is made to fit its context."""
        return self._source.options(self._models[0])

    async def digest(self) -> str | None:
        """Of the chosen model; an answer that another one gave says so in its completion."""
        return await self._source.open(self._models[0]).digest()

    async def stream(
        self,
        messages: Sequence[Message],
        options: GenerationOptions,
        admission: Admission = UNHURRIED,
    ) -> AsyncGenerator[GenerationEvent]:
        """See ChatModel. The completion names the model as it is registered, and who failed."""
        tried: list[Attempt] = []
        failures: list[Unavailable] = []
        is_pool_full = False
        for model in self._models:
            unfit = self._unfit(model, messages, options)
            if unfit is None and is_pool_full and model.provider == OLLAMA:
                unfit = "shares the servers that are busy"
            if unfit is not None:
                tried.append(Attempt(model.name, unfit))
                continue
            try:
                async with aclosing(self._asked(model, messages, options, admission)) as events:
                    async for event in events:
                        if isinstance(event, Completion):
                            yield replace(event, model=model.name, tried=tuple(tried))
                        else:
                            yield event
                return
            except (GenerationUnavailable, Overloaded) as failure:
                is_pool_full |= isinstance(failure, Overloaded)
                failures.append(failure)
                tried.append(Attempt(model.name, failure.detail))
                GENERATION_FALLBACKS.labels(model.name).inc()
                log.info("model_failed", model=model.name, why=failure.detail)
        raise _all_failed(tried, failures)

    async def _asked(
        self,
        model: ModelSpec,
        messages: Sequence[Message],
        options: GenerationOptions,
        admission: Admission,
    ) -> AsyncGenerator[GenerationEvent]:
        """One model's stream; raises GenerationUnavailable, too, when it ends without a text."""
        own = self._source.options(model)
        own = replace(options, context_tokens=own.context_tokens, max_tokens=own.max_tokens)
        has_text = False
        async with aclosing(self._source.open(model).stream(messages, own, admission)) as events:
            async for event in events:
                has_text |= isinstance(event, TextDelta) and bool(event.text.strip())
                if isinstance(event, Completion) and not has_text:
                    raise GenerationUnavailable("The model gave an empty answer.")
                yield event

    def _unfit(
        self, model: ModelSpec, messages: Sequence[Message], options: GenerationOptions
    ) -> str | None:
        """Why the prompt, made for the context of the chosen model, is not for this one."""
        own = self._source.options(model)
        if own.context_tokens >= options.context_tokens or _fits(messages, own):
            return None
        return f"its context of {own.context_tokens} tokens is too small"


def _fits(messages: Sequence[Message], options: GenerationOptions) -> bool:
    tokens = sum(estimate_tokens(one.content) for one in messages)
    return options.max_tokens + tokens <= options.context_tokens


def _all_failed(tried: Sequence[Attempt], failures: Sequence[Unavailable]) -> Unavailable:
    """The only failure as it is; of several, what each said, and the shortest wait."""
    if len(tried) == 1 and failures:
        return failures[0]
    kinds = {type(one) for one in failures}
    kind = kinds.pop() if kinds in ({Overloaded}, {BudgetExhausted}) else GenerationUnavailable
    return kind(
        f"No model could answer ({_said(tried)}).",
        hint=failures[0].hint if failures else None,
        retry_after_seconds=min((one.retry_after_seconds for one in failures), default=None),
    )
