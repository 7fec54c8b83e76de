"""Which tier, which model, and who stands in: as pure decisions, and down a chain of real streams."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import pytest

from app.config import Settings
from app.errors import (
    Forbidden,
    GenerationInterrupted,
    GenerationUnavailable,
    InvalidInput,
    Overloaded,
)
from app.language_models import ModelSpec, Tier
from app.llm.base import (
    UNHURRIED,
    Admission,
    Attempt,
    Completion,
    GenerationEvent,
    GenerationOptions,
    Message,
    Queued,
    TextDelta,
)
from app.llm.catalogue import Catalogue, Registered
from app.llm.question_kinds import QuestionKind
from app.llm.tiers import (
    CLOUD_FORBIDDEN,
    FACT_TOKENS,
    FALLBACKS,
    LONG_TOKENS,
    NO_MODEL,
    WEIGHTY_TOKENS,
    Nobody,
    RoutedModel,
    Tiers,
    chain_of,
    tier_for,
)
from tests.doubles.catalogue import FixedModels

PHI = ModelSpec(name="phi3:mini", tier="realtime")
LLAMA = ModelSpec(name="llama3.1:8b", tier="interactive")
LEGAL = ModelSpec(name="llama-legal", variant="lora", baseline="llama3.1:8b")
CLAUDE = ModelSpec(name="claude", provider="anthropic", tier="orchestration", context_tokens=200000)
ALL = (PHI, LLAMA, LEGAL, CLAUDE)
CLOUD = frozenset({"claude"})


class Scripted:
    """A ChatModel that gives these events, then raises the error if there is one."""

    def __init__(self, *events: GenerationEvent, error: Exception | None = None) -> None:
        self.events = events
        self.error = error
        self.asked: list[GenerationOptions] = []

    @property
    def name(self) -> str:
        return "scripted"

    async def digest(self) -> str | None:
        return "scripted"

    async def stream(
        self,
        messages: Sequence[Message],
        options: GenerationOptions,
        admission: Admission = UNHURRIED,
    ) -> AsyncGenerator[GenerationEvent]:
        self.asked.append(options)
        for event in self.events:
            yield event
        if self.error is not None:
            raise self.error


def answering(text: str = "Yes.") -> Scripted:
    return Scripted(TextDelta(text), Completion("upstream-name", "stop", 10, 2))


def failing(error: Exception | None = None) -> Scripted:
    return Scripted(error=error or GenerationUnavailable("it is away"))


def catalogue(*specs: ModelSpec, cloud_allowed: bool = False) -> Catalogue:
    return Catalogue(tuple(map(Registered, specs)), cloud_allowed)


def source(**models: Scripted) -> FixedModels:
    """By the first letters of the names."""
    found = {
        spec.name: model
        for spec in ALL
        for start, model in models.items()
        if spec.name.replace("-", "_").startswith(start)
    }
    return FixedModels(found, cloud=CLOUD)


# --- the tier -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "tokens", "tier"),
    [
        ("fact", 1600, "realtime"),
        ("fact", FACT_TOKENS + 1, "interactive"),
        ("explanation", 1600, "interactive"),
        ("explanation", 1, "interactive"),
        ("analysis", 1600, "orchestration"),
        ("analysis", WEIGHTY_TOKENS - 1, "interactive"),
        ("fact", LONG_TOKENS + 1, "orchestration"),
        (None, LONG_TOKENS + 1, "orchestration"),
        (None, 1600, "interactive"),
    ],
)
def test_the_tier_follows_kind_and_evidence(
    kind: QuestionKind | None, tokens: int, tier: Tier
) -> None:
    chosen, reason = tier_for(kind, tokens)
    assert chosen == tier
    assert f"{tokens:,} tokens" in reason


# --- the chain ------------------------------------------------------------------------------------


def names(*args: Any, **more: Any) -> list[str]:
    return [one.name for one in chain_of(*args, **more).models]


def test_a_tier_is_followed_by_the_tiers_it_falls_back_on() -> None:
    allowed = catalogue(*ALL, cloud_allowed=True)
    models = FixedModels({}, cloud=CLOUD)
    assert names(allowed, models, "realtime", FALLBACKS) == [
        "phi3:mini",
        "llama3.1:8b",
        "llama-legal",
    ]
    assert names(allowed, models, "orchestration", FALLBACKS)[0] == "claude"
    assert "claude" not in names(allowed, models, "interactive", FALLBACKS), "never up unasked"
    up: dict[Tier, tuple[Tier, ...]] = {**FALLBACKS, "interactive": ("orchestration",)}
    assert names(allowed, models, "interactive", up)[-1] == "claude"


def test_a_variant_falls_back_on_its_baseline_and_a_plain_model_on_nothing() -> None:
    models = FixedModels({}, cloud=CLOUD)
    assert names(catalogue(*ALL), models, LEGAL, FALLBACKS) == ["llama-legal", "llama3.1:8b"]
    assert names(catalogue(*ALL), models, LLAMA, FALLBACKS) == ["llama3.1:8b"]


def test_who_cannot_be_asked_is_left_out_with_the_reason() -> None:
    models = FixedModels({}, cloud=CLOUD, obstacles={"phi3:mini": "no key"})
    chain = chain_of(catalogue(*ALL), models, "orchestration", FALLBACKS)
    assert Attempt("claude", CLOUD_FORBIDDEN) in chain.skipped
    assert Attempt("phi3:mini", "no key") in chain.skipped
    assert [one.name for one in chain.models] == ["llama3.1:8b", "llama-legal"]


# --- what a request asks for ----------------------------------------------------------------------


def routed(
    models: FixedModels,
    offered: Catalogue,
    *,
    model: str = "auto",
    tier: Tier | None = None,
    kind: QuestionKind | None = "fact",
    settings: Settings | None = None,
) -> RoutedModel | Nobody:
    tiers = Tiers(models, settings or Settings())
    offer = tiers.offer(offered, model, tier)
    assert offer is not None
    return tiers.route(offer, kind, 1600)


def test_a_request_may_name_a_model_a_tier_or_neither() -> None:
    models, there = source(), catalogue(*ALL, cloud_allowed=True)
    for asked, name, reason in (
        ({"model": "claude"}, "claude", "the request names it"),
        ({"tier": "realtime", "kind": "analysis"}, "phi3:mini", "asks for the tier realtime"),
        ({"kind": "analysis"}, "claude", "asks for an analysis"),
        ({"kind": "fact"}, "phi3:mini", "asks for a fact"),
        ({"kind": None}, "llama3.1:8b", "unknown kind"),
        ({"model": "phi3:mini", "tier": "orchestration"}, "phi3:mini", "names it"),
    ):
        found = routed(models, there, **asked)  # type: ignore[arg-type]
        assert isinstance(found, RoutedModel)
        assert found.name == name
        assert reason in found.routing.reason
        assert found.routing.tried == ()


def test_one_tier_leaves_nothing_to_find_out() -> None:
    tiers = Tiers(source(), Settings())
    offer = tiers.offer(catalogue(LLAMA, LEGAL), "auto", None)
    assert offer is not None
    assert not offer.is_open
    found = tiers.route(offer, None, 10)
    assert isinstance(found, RoutedModel)
    assert found.routing.reason == "the only tier that there is"


def test_the_passages_own_words_may_be_asked_for() -> None:
    assert Tiers(source(), Settings()).offer(catalogue(*ALL), "extractive", None) is None


def test_an_unknown_model_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InvalidInput, match="gpt-9") as refused:
        Tiers(source(), Settings()).offer(catalogue(*ALL), "gpt-9", None)
    assert "phi3:mini" in refused.value.hint


def test_a_cloud_model_by_name_needs_the_tenants_leave() -> None:
    with pytest.raises(Forbidden, match=CLOUD_FORBIDDEN):
        routed(source(), catalogue(*ALL), model="claude")
    found = routed(source(), catalogue(*ALL, cloud_allowed=True), model="claude")
    assert isinstance(found, RoutedModel)


def test_without_that_leave_auto_stays_in_the_house_and_says_so() -> None:
    found = routed(source(), catalogue(*ALL), kind="analysis")
    assert isinstance(found, RoutedModel)
    assert found.routing.model == "llama3.1:8b"
    assert found.routing.tried == (Attempt("claude", CLOUD_FORBIDDEN),)
    assert "no model of the tier orchestration" in found.routing.reason


def test_a_named_model_that_cannot_be_asked_is_unavailable() -> None:
    models = FixedModels({}, obstacles={"llama3.1:8b": "no FOOTNOTE_OLLAMA_URLS"})
    with pytest.raises(GenerationUnavailable, match="FOOTNOTE_OLLAMA_URLS"):
        routed(models, catalogue(*ALL), model="llama3.1:8b")
    with pytest.raises(GenerationUnavailable, match="FOOTNOTE_OLLAMA_URLS"):
        routed(models, catalogue(LLAMA), model="llama3.1:8b")


def test_a_variant_that_cannot_be_asked_is_stood_in_for_by_its_baseline() -> None:
    models = FixedModels({}, obstacles={"llama-legal": "no key"})
    found = routed(models, catalogue(*ALL), model="llama-legal")
    assert isinstance(found, RoutedModel)
    assert found.name == "llama3.1:8b"
    assert found.routing.reason == "the baseline of llama-legal, which the request names"


def test_where_nobody_may_be_asked_it_is_said_why() -> None:
    nobody = routed(source(), catalogue(CLAUDE))
    assert isinstance(nobody, Nobody)
    assert CLOUD_FORBIDDEN in nobody.notice
    none_at_all = routed(source(), catalogue())
    assert isinstance(none_at_all, Nobody)
    assert none_at_all.notice == NO_MODEL


def test_fallbacks_can_be_configured() -> None:
    settings = Settings(tier_fallbacks={"realtime": ()})
    models = FixedModels({}, obstacles={"phi3:mini": "away"})
    found = routed(models, catalogue(*ALL), tier="realtime", settings=settings)
    assert isinstance(found, Nobody)


# --- down the chain -------------------------------------------------------------------------------


async def answer_of(model: RoutedModel | Nobody, question: str = "Who?") -> tuple[str, Completion]:
    assert isinstance(model, RoutedModel)
    text, completion = "", None
    messages = [Message("user", question)]
    async with aclosing(model.stream(messages, model.options)) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                text += event.text
            elif isinstance(event, Completion):
                completion = event
    assert completion is not None
    return text, completion


async def test_the_completion_names_the_model_as_it_is_registered() -> None:
    models = source(phi=answering("A."))
    text, completion = await answer_of(routed(models, catalogue(*ALL)))
    assert (text, completion.model, completion.tried) == ("A.", "phi3:mini", ())


async def test_who_fails_before_the_first_text_is_stood_in_for() -> None:
    models = source(phi=failing(), llama3=answering("B."))
    text, completion = await answer_of(routed(models, catalogue(*ALL)))
    assert (text, completion.model) == ("B.", "llama3.1:8b")
    assert completion.tried == (Attempt("phi3:mini", "it is away"),)


async def test_an_empty_answer_is_none() -> None:
    empty = Scripted(TextDelta(" "), Completion("x", "stop", 1, 0))
    models = source(phi=empty, llama3=answering())
    _, completion = await answer_of(routed(models, catalogue(*ALL)))
    assert completion.tried == (Attempt("phi3:mini", "The model gave an empty answer."),)


async def test_nobody_takes_over_after_the_first_text() -> None:
    broken = Scripted(TextDelta("A"), error=GenerationInterrupted("it broke"))
    spare = answering("B.")
    with pytest.raises(GenerationInterrupted, match="it broke"):
        await answer_of(routed(source(phi=broken, llama3=spare), catalogue(*ALL)))
    assert spare.asked == []


async def test_a_full_pool_is_not_asked_for_another_model() -> None:
    full = Scripted(Queued(1, 2.0), error=Overloaded("the queue is full", retry_after_seconds=7))
    spare = answering("B.")
    models = source(phi=full, llama=spare, claude=answering("C."))
    with pytest.raises(Overloaded, match="shares the servers that are busy") as failure:
        await answer_of(routed(models, catalogue(*ALL)))
    assert failure.value.retry_after_seconds == 7
    assert spare.asked == []
    settings = Settings(tier_fallbacks={"realtime": ("interactive", "orchestration")})
    allowed = catalogue(*ALL, cloud_allowed=True)
    text, completion = await answer_of(routed(models, allowed, settings=settings))
    assert (text, completion.model) == ("C.", "claude")


async def test_all_that_failed_is_told() -> None:
    models = source(phi=failing(), llama=failing(GenerationUnavailable("no reply")))
    with pytest.raises(GenerationUnavailable) as failure:
        await answer_of(routed(models, catalogue(*ALL)))
    assert "phi3:mini: it is away" in failure.value.detail
    assert "llama3.1:8b: no reply" in failure.value.detail


async def test_the_only_failure_stays_what_it_is() -> None:
    full = Overloaded("the queue is full", retry_after_seconds=7)
    with pytest.raises(Overloaded) as failure:
        await answer_of(routed(source(llama=failing(full)), catalogue(LLAMA)))
    assert failure.value is full


async def test_a_context_too_small_for_the_prompt_is_not_asked() -> None:
    small = ModelSpec(name="llama3.1:8b", context_tokens=1024)
    models = source(claude=failing(), llama3=answering(), phi=answering("P."))
    there = catalogue(PHI, small, CLAUDE, cloud_allowed=True)
    model = routed(models, there, model="auto", kind="analysis")
    assert isinstance(model, RoutedModel)
    assert model.options.context_tokens == 200_000
    text, completion = await answer_of(model, "word " * 1000)
    assert (text, completion.model) == ("P.", "phi3:mini")
    assert completion.tried[1] == Attempt("llama3.1:8b", "its context of 1024 tokens is too small")
    assert completion.tried[0].model == "claude"


async def test_each_model_gets_its_own_context() -> None:
    spare = answering()
    models = source(claude=failing(), llama3=spare)
    model = routed(models, catalogue(LLAMA, CLAUDE, cloud_allowed=True), kind="analysis")
    await answer_of(model)
    assert [one.context_tokens for one in spare.asked] == [Settings().generation_context_tokens]
