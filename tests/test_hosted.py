"""Providers over their real SDKs against doubles of their APIs, on real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from app.config import Settings
from app.errors import GenerationUnavailable
from app.language_models import ModelSpec, ProviderSpec
from app.llm import hosted
from app.llm.base import Completion, GenerationOptions, Message, TextDelta
from app.llm.hosted import ProviderBroke, ProviderFailed, Rest, RetryBudget
from app.llm.providers import HostedProviders, Providers, key_variable, price_of
from tests.doubles.hosted import HostedDouble, running_hosted

KEY = "sk-right"
NO_LEDGER: Any = None  # nobody pays here, so nothing is booked
OPTIONS = GenerationOptions(max_tokens=50)
MESSAGES = [
    Message("system", "Answer from the sources."),
    Message("user", "Hello?"),
    Message("assistant", "Hello."),
    Message("user", '<source id="1" title="Travel">\nAda approves travel. Bo does not.\n</source>'),
]
ANSWER = "Ada approves travel. [1]"


@pytest.fixture
async def double() -> AsyncIterator[HostedDouble]:
    async with running_hosted() as running:
        yield running


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosted, "RETRY_SECONDS", 0.0)


def providers_of(double: HostedDouble, key: str | None = KEY, **changes: Any) -> Providers:
    """Every kind of provider, all of them the double."""
    given = {
        "openai": ProviderSpec(kind="openai", url=f"{double.url}/v1"),
        "anthropic": ProviderSpec(kind="anthropic", url=double.url),
        "azure-eu": ProviderSpec(kind="azure", url=double.url),
        "vllm": ProviderSpec(kind="openai-compatible", url=f"{double.url}/v1", local=True),
    }
    settings = Settings(providers=given, generation_stall_timeout_seconds=0.3).model_copy(
        update=changes
    )
    environment = {key_variable(name): key for name in given} if key else {}
    return Providers(settings, None, HostedProviders(settings, environment), NO_LEDGER)


def without_keys(settings: Settings) -> Providers:
    return Providers(settings, None, HostedProviders(settings, {}), NO_LEDGER)


def model_of(provider: str, **more: Any) -> ModelSpec:
    name = "claude-sonnet" if provider == "anthropic" else "gpt-5"
    return ModelSpec(name=name, provider=provider, tier="orchestration", **more)


async def ask(
    providers: Providers, provider: str, options: GenerationOptions | None = None, **more: Any
) -> tuple[str, Completion]:
    text, completion = "", None
    model = model_of(provider, **more)
    chat = providers.open(model)
    options = options or replace(OPTIONS, max_tokens=providers.options(model).max_tokens)
    async with aclosing(chat.stream(MESSAGES, options)) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                assert completion is None
                text += event.text
            else:
                assert isinstance(event, Completion)
                completion = event
    assert completion is not None
    return text, completion


KINDS = pytest.mark.parametrize("provider", ["openai", "anthropic", "azure-eu", "vllm"])
PROTOCOLS = pytest.mark.parametrize("provider", ["openai", "anthropic"])


@KINDS
async def test_text_comes_and_then_what_it_used(double: HostedDouble, provider: str) -> None:
    providers = providers_of(double)
    text, completion = await ask(providers, provider)
    assert text == ANSWER
    assert completion.reason == "stop"
    assert completion.prompt_tokens == 120
    assert completion.cached_tokens == 20
    assert completion.completion_tokens == 4
    roles = [one["role"] for one in double.requests[0]["messages"]]
    if provider == "anthropic":
        assert roles == ["user", "assistant", "user"]
        assert double.requests[0]["system"] == "Answer from the sources."
    else:
        assert roles == ["system", "user", "assistant", "user"]
    await providers.hosted.close()


@KINDS
async def test_an_answer_at_its_limit_says_so(double: HostedDouble, provider: str) -> None:
    providers = providers_of(double)
    text, completion = await ask(providers, provider, GenerationOptions(max_tokens=2))
    assert (text, completion.reason) == ("Ada approves", "length")
    await providers.hosted.close()


@pytest.mark.parametrize("provider", ["openai", "anthropic", "azure-eu"])
async def test_a_thinking_model_is_asked_as_it_wants_to_be(
    double: HostedDouble, provider: str
) -> None:
    double.thinking = ("gpt-5", "claude-sonnet")
    providers = providers_of(double)
    text, _ = await ask(providers, provider, capabilities=("thinking",))
    assert text == ANSWER
    asked = double.requests[0]
    limit = asked.get("max_completion_tokens") or asked["max_tokens"]
    assert limit == Settings().generation_max_tokens + hosted.THINKING_TOKENS
    await providers.hosted.close()


async def test_a_provider_that_does_not_count_is_not_free(double: HostedDouble) -> None:
    double.counts_tokens = False
    providers = providers_of(double)
    _, completion = await ask(providers, "vllm")
    assert completion.prompt_tokens >= len("".join(one.content for one in MESSAGES)) // 4
    assert completion.completion_tokens >= len(ANSWER) // 4
    await providers.hosted.close()


# --- what goes wrong ------------------------------------------------------------------------------


@PROTOCOLS
@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("status_500", "failed"),
        ("status_529", "failed"),
        ("status_429", "busy"),
        ("cut", "cut"),
        ("no_end", "cut"),
        ("garbage", "garbage"),
        ("error_event", "failed"),
        ("not_sse", "cut"),
        ("redirect", "refused"),
    ],
)
async def test_a_failure_before_the_first_text_is_told_as_one(
    double: HostedDouble, provider: str, fault: Any, cause: str
) -> None:
    double.fault = fault
    providers = providers_of(double)
    with pytest.raises(ProviderFailed) as failure:
        await ask(providers, provider)
    assert failure.value.cause == cause
    assert provider in failure.value.detail
    assert KEY not in failure.value.detail + failure.value.hint
    await providers.hosted.close()


@PROTOCOLS
@pytest.mark.parametrize(
    ("fault", "cause"),
    [("cut", "cut"), ("no_end", "cut"), ("garbage", "garbage"), ("error_event", "failed"),
     ("hang", "stalled")],
)  # fmt: skip
async def test_a_failure_after_it_is_an_interruption(
    double: HostedDouble, provider: str, fault: Any, cause: str
) -> None:
    double.fault, double.fault_after_tokens = fault, 2
    providers = providers_of(double)
    with pytest.raises(ProviderBroke) as failure:
        await ask(providers, provider)
    assert failure.value.cause == cause
    assert len(double.requests) == 1, "what was begun must not be begun again"
    await providers.hosted.close()


@PROTOCOLS
async def test_one_transient_failure_goes_unnoticed(double: HostedDouble, provider: str) -> None:
    double.fault, double.faults_left = "status_529", 1
    providers = providers_of(double)
    assert (await ask(providers, provider))[0] == ANSWER
    assert len(double.requests) == 2
    await providers.hosted.close()


@PROTOCOLS
async def test_what_is_refused_is_not_asked_again(double: HostedDouble, provider: str) -> None:
    double.fault = "status_400"
    providers = providers_of(double)
    with pytest.raises(ProviderFailed, match="status 400") as failure:
        await ask(providers, provider)
    assert failure.value.cause == "refused"
    assert KEY not in failure.value.detail
    assert len(double.requests) == 1
    await providers.hosted.close()


@PROTOCOLS
async def test_silence_before_the_first_token_has_an_end(
    double: HostedDouble, provider: str
) -> None:
    double.first_token_seconds = 30
    providers = providers_of(double, generation_first_token_timeout_seconds=0.2)
    with pytest.raises(ProviderFailed, match="too long") as failure:
        await ask(providers, provider)
    assert failure.value.cause == "silent"
    await eventually(lambda: double.aborted == 1)
    await providers.hosted.close()


@KINDS
async def test_a_wrong_key_is_told_without_it(double: HostedDouble, provider: str) -> None:
    providers = providers_of(double, key="sk-wrong")
    with pytest.raises(ProviderFailed) as failure:
        await ask(providers, provider)
    assert failure.value.cause == "no_key"
    assert "sk-wrong" not in failure.value.detail + failure.value.hint
    await providers.hosted.close()


@PROTOCOLS
async def test_an_unknown_model_is_told(double: HostedDouble, provider: str) -> None:
    providers = providers_of(double)
    with pytest.raises(ProviderFailed, match="does not have the model gpt-9"):
        await ask(providers, provider, served_as="gpt-9")
    await providers.hosted.close()


async def test_nobody_there(double: HostedDouble) -> None:
    nowhere = ProviderSpec(kind="openai-compatible", url="http://127.0.0.1:9/v1", local=True)
    providers = without_keys(Settings(providers={"vllm": nowhere}))
    with pytest.raises(ProviderFailed) as failure:
        await ask(providers, "vllm")
    assert failure.value.cause == "unreachable"
    await providers.hosted.close()


async def test_without_a_key_nothing_is_asked(double: HostedDouble) -> None:
    providers = providers_of(double, key=None)
    assert providers.obstacle(model_of("openai")) == "no key: FOOTNOTE_OPENAI_API_KEY is not set"
    assert providers.obstacle(model_of("vllm")) is None
    with pytest.raises(GenerationUnavailable, match="FOOTNOTE_AZURE_EU_API_KEY"):
        providers.open(model_of("azure-eu"))
    await providers.hosted.close()


async def test_the_package_may_be_missing(
    double: HostedDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("openai", "app.llm.openai_compatible"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    providers = providers_of(double)
    with pytest.raises(ProviderFailed, match="not installed") as failure:
        await ask(providers, "openai")
    assert "footnote[cloud]" in failure.value.hint
    (health,) = [
        one for one in await providers.hosted.health(frozenset()) if one.provider == "openai"
    ]
    assert (health.healthy, health.reason) == (False, "the package for it is not installed")
    await providers.hosted.close()


@PROTOCOLS
async def test_whoever_leaves_ends_the_work(double: HostedDouble, provider: str) -> None:
    double.answer = "word " * 100
    double.fault, double.fault_after_tokens = "hang", 10
    providers = providers_of(double)
    stream = providers.open(model_of(provider)).stream(MESSAGES, OPTIONS)
    for _ in range(10):
        assert isinstance(await anext(stream), TextDelta)
    await stream.aclose()
    await eventually(lambda: double.aborted == 1)
    await providers.hosted.close()


@PROTOCOLS
async def test_more_than_was_asked_for_is_cut_off(double: HostedDouble, provider: str) -> None:
    double.fault = "too_much"
    providers = providers_of(double)
    with pytest.raises(ProviderBroke) as failure:
        await ask(providers, provider)
    assert failure.value.cause == "garbage"
    await providers.hosted.close()


async def test_a_provider_works_on_so_much_at_a_time(
    double: HostedDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosted, "MAX_IN_FLIGHT", 2)
    double.first_token_seconds = 0.2
    providers = providers_of(double)
    results = await asyncio.gather(
        *(ask(providers, "openai") for _ in range(3)), return_exceptions=True
    )
    failed = [one for one in results if isinstance(one, ProviderFailed)]
    assert [one.cause for one in failed] == ["busy"]
    assert (await ask(providers, "openai"))[0] == ANSWER
    await providers.hosted.close()


async def test_a_provider_that_keeps_failing_is_left_alone(double: HostedDouble) -> None:
    double.fault = "status_500"
    providers = providers_of(double)
    for _ in range(4):
        with pytest.raises(ProviderFailed):
            await ask(providers, "openai")
    asked = len(double.requests)
    with pytest.raises(ProviderFailed, match="left alone"):
        await ask(providers, "openai")
    assert len(double.requests) == asked
    double.fault = None
    assert (await ask(providers, "vllm"))[0] == ANSWER, "the others are not concerned"
    await providers.hosted.close()


def test_rests_grow_and_end() -> None:
    now = 0.0
    rest = Rest(lambda: now)
    for _ in range(hosted.FAULTS_TO_REST - 1):
        rest.record(is_fault=True)
        assert rest.seconds_left == 0
    rest.record(is_fault=True)
    assert rest.seconds_left == hosted.FIRST_REST_SECONDS
    now = hosted.FIRST_REST_SECONDS
    assert rest.seconds_left == 0
    rest.record(is_fault=True)
    assert rest.seconds_left == 2 * hosted.FIRST_REST_SECONDS
    for _ in range(20):
        rest.record(is_fault=True)
    assert rest.seconds_left == hosted.MAX_REST_SECONDS
    rest.record(is_fault=False)
    now += hosted.MAX_REST_SECONDS
    rest.record(is_fault=True)
    assert rest.seconds_left == 0


def test_retries_are_a_tenth_of_the_requests() -> None:
    budget = RetryBudget()
    retried = 0
    for _ in range(1000):
        budget.earn()
        retried += budget.spend()
    assert 100 <= retried <= 100 + hosted.RETRIES_SAVED


# --- health ---------------------------------------------------------------------------------------


async def test_every_configured_provider_is_asked(double: HostedDouble) -> None:
    providers = providers_of(double)
    told = {one.provider: one for one in await providers.hosted.health(frozenset())}
    assert set(told) == {"openai", "anthropic", "azure-eu", "vllm"}
    for one in told.values():
        assert one.healthy
        assert one.models == ("claude-sonnet", "gpt-5")
        assert one.latency_ms is not None
        assert one.latency_ms > 0
    await providers.hosted.close()


async def test_a_well_known_provider_counts_once_it_is_used(double: HostedDouble) -> None:
    providers = without_keys(Settings())
    assert await providers.hosted.health(frozenset()) == []
    (told,) = await providers.hosted.health(frozenset({"deepseek"}))
    assert (told.provider, told.healthy) == ("deepseek", False)
    assert told.reason == "no key: FOOTNOTE_DEEPSEEK_API_KEY is not set"
    await providers.hosted.close()


async def test_a_price_is_what_the_registry_says() -> None:
    spec = ModelSpec.model_validate(
        {"name": "a", "prompt_price_per_million": "2.5", "completion_price_per_million": 10}
    )
    price = price_of(spec)
    assert price.of(1_000_000, 1_000_000, took_ms=5) == pytest.approx(12.5)
    assert not price.is_free


async def eventually(holds: Any) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.01)
