"""The contract of a ChatModel, on one Ollama instance: the double's, and a real one if named."""

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from time import perf_counter

import pytest

from app.config import Settings
from app.errors import StartupError
from app.llm.base import (
    Completion,
    Durations,
    GenerationOptions,
    InstanceHealth,
    Message,
    TextDelta,
)
from app.llm.draining import Drain
from app.llm.ollama import InstanceBroke, InstanceFailed, OllamaInstance, Patience
from app.llm.registry import generation_options, open_chat_model, parse_instance
from tests.doubles.ollama import OllamaDouble

MODEL = "llama3.1:8b"
QUESTION = [Message("user", "Say hello.")]
OPTIONS = GenerationOptions(max_tokens=64, context_tokens=2048)


class OneServer:
    """A ChatModel on one instance."""

    def __init__(self, url: str, model: str) -> None:
        self._instance = OllamaInstance(url, connect_timeout_seconds=2.0)
        self._model = model
        self._patience = Patience(first_token_seconds=1.0, stall_seconds=0.5)
        self.address = self._instance.address

    def stream(
        self, messages: Sequence[Message], options: GenerationOptions
    ) -> AsyncGenerator[TextDelta | Completion]:
        return self._instance.stream(self._model, messages, options, self._patience)

    async def health(self) -> InstanceHealth:
        return await self._instance.health(self._model, timeout_seconds=1.0)

    async def preload(self, options: GenerationOptions) -> Completion:
        [loaded] = [event async for event in self.stream([], options)]
        assert isinstance(loaded, Completion)
        return loaded

    async def resident_models(self) -> frozenset[str]:
        return await self._instance.resident_models()

    async def close(self) -> None:
        await self._instance.close()


@pytest.fixture
async def instance(double: OllamaDouble) -> AsyncIterator[OneServer]:
    opened = open_instance(double.url)
    yield opened
    await opened.close()


def open_instance(url: str, model: str = MODEL) -> OneServer:
    return OneServer(url, model)


async def read(instance: OneServer, options: GenerationOptions = OPTIONS) -> tuple[str, Completion]:
    """The whole text and the completion, which must be the last event and the only one."""
    texts: list[str] = []
    completions: list[Completion] = []
    async for event in instance.stream(QUESTION, options):
        assert not completions
        if isinstance(event, TextDelta):
            assert event.text
            texts.append(event.text)
        else:
            completions.append(event)
    assert len(completions) == 1
    return "".join(texts), completions[0]


async def eventually(condition: Callable[[], bool], within_seconds: float = 5.0) -> None:
    """Waits until `condition()` holds; fails when it does not in time."""
    started = perf_counter()
    while not condition():
        assert perf_counter() - started < within_seconds
        await asyncio.sleep(0.01)


async def test_streams_text_then_one_completion(double: OllamaDouble, instance: OneServer) -> None:
    double.set(answer="Hello there, how are you?")
    text, completion = await read(instance)
    assert text == "Hello there, how are you?"
    assert replace(completion, durations=Durations()) == Completion(
        model=MODEL, reason="stop", prompt_tokens=2, completion_tokens=5, instance=double.url
    )
    assert completion.durations.total_seconds > 0


async def test_text_arrives_before_the_answer_is_whole(
    double: OllamaDouble, instance: OneServer
) -> None:
    double.set(answer="one two three four five six", token_seconds=0.1)
    started = perf_counter()
    async with aclosing(instance.stream(QUESTION, OPTIONS)) as events:
        assert await anext(events) == TextDelta("one")
        assert perf_counter() - started < 0.4


async def test_says_when_the_token_limit_cut_the_answer(
    double: OllamaDouble, instance: OneServer
) -> None:
    double.set(answer="one two three four")
    text, completion = await read(instance, GenerationOptions(max_tokens=2))
    assert (text, completion.reason) == ("one two", "length")


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 7])
async def test_characters_cut_by_the_network_stay_whole(
    double: OllamaDouble, instance: OneServer, piece_bytes: int
) -> None:
    double.set(answer="Grüße 你好 🙂 naïve", piece_bytes=piece_bytes)
    text, _ = await read(instance)
    assert text == "Grüße 你好 🙂 naïve"


async def test_drops_what_neither_utf8_nor_the_database_can_hold(
    double: OllamaDouble, instance: OneServer
) -> None:
    double.set(answer="a\0b é\0")
    text, _ = await read(instance)
    assert text == "ab é"


async def test_every_request_has_the_same_options_so_the_model_loads_once(
    double: OllamaDouble, instance: OneServer
) -> None:
    await read(instance)
    await read(instance)
    await read(instance, replace(OPTIONS, max_tokens=1))
    stats = double.stats()
    assert (stats.requests, stats.loads) == (3, 1)
    assert stats.last_request is not None
    assert stats.last_request["options"] == {
        "num_ctx": 2048,
        "num_predict": 1,
        "temperature": 0.0,
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("hang", "silent"),
        ("cut", "cut"),
        ("no_done", "cut"),
        ("error_line", "failed"),
        ("garbage", "garbage"),
        ("status_500", "failed"),
        ("status_503", "failed"),
    ],
)
async def test_a_fault_before_the_first_text_is_no_answer_at_all(
    double: OllamaDouble, instance: OneServer, fault: str, cause: str
) -> None:
    double.set(fault=fault)
    with pytest.raises(InstanceFailed) as raised:
        await read(instance)
    assert raised.value.cause == cause
    assert raised.value.status == 503


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("hang", "stalled"),
        ("cut", "cut"),
        ("no_done", "cut"),
        ("error_line", "failed"),
        ("garbage", "garbage"),
    ],
)
async def test_a_fault_after_the_first_text_is_an_interruption(
    double: OllamaDouble, instance: OneServer, fault: str, cause: str
) -> None:
    double.set(answer="one two three four", fault=fault, fault_after_tokens=2)
    seen: list[str] = []

    async def consume() -> None:
        async for event in instance.stream(QUESTION, OPTIONS):
            assert isinstance(event, TextDelta)
            seen.append(event.text)

    with pytest.raises(InstanceBroke) as raised:
        await consume()
    assert raised.value.cause == cause
    assert seen == ["one", " two"]


async def test_an_unreachable_server_is_told_from_a_failing_one() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        instance = open_instance(url)
        with pytest.raises(InstanceFailed) as raised:
            await read(instance)
        assert raised.value.cause == "unreachable"
        health = await instance.health()
        assert (health.reachable, health.has_model, health.reason) == (False, False, "no reply")
        await instance.close()


async def test_a_missing_model_comes_with_the_command_that_gets_it(double: OllamaDouble) -> None:
    instance = open_instance(double.url, "mistral")
    with pytest.raises(InstanceFailed) as raised:
        await read(instance)
    assert raised.value.cause == "missing"
    assert "`ollama pull mistral`" in raised.value.hint
    health = await instance.health()
    assert (health.reachable, health.has_model) == (True, False)
    await instance.close()


async def test_a_404_of_something_else_is_not_a_missing_model(double: OllamaDouble) -> None:
    instance = open_instance(double.url + "/v1")
    with pytest.raises(InstanceFailed) as raised:
        await read(instance)
    assert raised.value.cause == "failed"
    await instance.close()


async def test_health_knows_a_model_without_its_tag(double: OllamaDouble) -> None:
    double.set(model="mistral:latest")
    instance = open_instance(double.url, "mistral")
    health = await instance.health()
    assert health.reachable
    assert health.has_model
    assert health.latency_ms is not None
    await instance.close()


async def test_closing_the_iterator_ends_the_work_upstream(
    double: OllamaDouble, instance: OneServer
) -> None:
    double.set(answer="word " * 60, token_seconds=0.1)
    async with aclosing(instance.stream(QUESTION, OPTIONS)) as events:
        await anext(events)
    await eventually(lambda: double.stats().aborted == 1, within_seconds=1.0)


async def test_leaving_while_the_prompt_is_read_ends_the_work_upstream(
    double: OllamaDouble, instance: OneServer
) -> None:
    double.set(first_token_seconds=30)
    asked = asyncio.create_task(read(instance))
    await eventually(lambda: double.stats().generating == 1)
    asked.cancel()
    await eventually(lambda: double.stats().aborted == 1, within_seconds=1.0)


async def test_a_slow_reader_is_not_taken_for_a_stalled_server(
    double: OllamaDouble, instance: OneServer
) -> None:
    double.set(answer="one two three")
    texts: list[str] = []
    async for event in instance.stream(QUESTION, OPTIONS):
        await asyncio.sleep(0.6)
        if isinstance(event, TextDelta):
            texts.append(event.text)
    assert "".join(texts) == "one two three"


async def test_a_slow_reader_does_not_hold_the_server_back(
    double: OllamaDouble, instance: OneServer
) -> None:
    double.set(answer="x" * 3000 + " y" * 60)
    ended: list[BaseException | None] = []
    drain = Drain(instance.stream(QUESTION, OPTIONS), ended.append)
    async with aclosing(aiter(drain)) as events:
        first = await anext(events)
        await eventually(lambda: double.stats().completed == 1)
        rest = [event async for event in events]
    assert ended == [None]
    assert isinstance(first, TextDelta)
    assert len(rest) == 61


async def test_a_server_that_sends_too_much_is_cut_off(
    double: OllamaDouble, instance: OneServer
) -> None:
    double.set(answer="x" * 1000)
    with pytest.raises(InstanceFailed) as raised:
        await read(instance, GenerationOptions(max_tokens=1))
    assert raised.value.cause == "garbage"


async def test_a_wedged_server_answers_health_but_does_not_generate(
    double: OllamaDouble, instance: OneServer
) -> None:
    double.set(fault="hang")
    assert (await instance.health()).reachable
    with pytest.raises(InstanceFailed):
        await read(instance)


async def test_an_empty_request_loads_the_model_and_writes_nothing(
    double: OllamaDouble, instance: OneServer
) -> None:
    assert await instance.resident_models() == frozenset()
    loaded = await instance.preload(OPTIONS)
    assert (loaded.reason, loaded.completion_tokens) == ("load", 0)
    assert await instance.resident_models() == {MODEL}
    await read(instance)
    stats = double.stats()
    assert stats.loads == 1
    assert stats.last_request is not None
    assert stats.last_request["keep_alive"] == -1


async def test_a_server_says_how_long_each_part_of_its_work_took(
    double: OllamaDouble, instance: OneServer
) -> None:
    double.set(answer="a b c d", first_token_seconds=0.1, token_seconds=0.05, load_seconds=0.2)
    _, completion = await read(instance)
    durations = completion.durations
    assert durations.load_seconds == pytest.approx(0.2, abs=0.1)
    assert durations.prompt_seconds == pytest.approx(0.1, abs=0.08)
    assert durations.completion_seconds == pytest.approx(0.2, abs=0.1)
    assert durations.hidden_wait_seconds < 0.1


def test_credentials_do_not_show_in_the_address() -> None:
    assert open_instance("http://user:secret@gpu-1:11434/").address == "http://gpu-1:11434"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://gpu-1:11434", ("http://gpu-1:11434", 1)),
        ("http://gpu-1:11434#slots=4", ("http://gpu-1:11434", 4)),
        ("localhost:11434#slots=2", ("http://localhost:11434", 2)),
        ("https://models.example/ollama#slots=8", ("https://models.example/ollama", 8)),
    ],
)
def test_an_instance_is_an_address_with_slots(given: str, expected: tuple[str, int]) -> None:
    assert parse_instance(given) == (*expected, False)


@pytest.mark.parametrize(
    "given",
    ["ftp://gpu-1", "http://", "http://gpu-1#slots=0", "http://gpu-1#slots=x", "http://gpu-1#n=1"],
)
def test_a_wrong_address_is_refused_by_name(given: str) -> None:
    with pytest.raises(StartupError) as raised:
        parse_instance(given)
    assert given in raised.value.detail


def test_no_address_means_no_model(settings: Settings) -> None:
    assert open_chat_model(settings) is None


def test_one_address_twice_is_refused() -> None:
    twice = Settings(ollama_urls=("http://gpu-1:11434", "http://gpu-1:11434#slots=2"))
    with pytest.raises(StartupError, match="given twice"):
        open_chat_model(twice)


@pytest.mark.live
async def test_a_real_server_keeps_the_contract() -> None:
    """FOOTNOTE_LIVE_OLLAMA names a server, FOOTNOTE_LIVE_MODEL a model that it has."""
    model = os.environ.get("FOOTNOTE_LIVE_MODEL", MODEL)
    live = Settings(ollama_urls=(os.environ["FOOTNOTE_LIVE_OLLAMA"],), model=model)
    pool = open_chat_model(live)
    assert pool is not None
    events = [event async for event in pool.stream(QUESTION, generation_options(live))]
    *texts, completion = events
    assert all(isinstance(event, TextDelta) and event.text for event in texts)
    assert isinstance(completion, Completion)
    assert completion.completion_tokens > 0
    [health] = await pool.health()
    assert health.has_model
    async with aclosing(pool.stream(QUESTION, generation_options(live))) as abandoned:
        await anext(abandoned)
    await pool.close()
