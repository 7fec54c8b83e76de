"""What the double and a real Ollama have in common on the wire, and what the double has seen of it.

The contract runs against the double, and against the server that FOOTNOTE_LIVE_OLLAMA names, with
its model FOOTNOTE_LIVE_MODEL, when tests marked `live` are asked for.
"""

import asyncio
import json
import math
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import httpx
import pytest

from tests.doubles.ollama import OllamaDouble
from tests.test_ollama import MODEL, eventually

DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


@dataclass
class Wire:
    """A server and a model that it has."""

    client: httpx.AsyncClient
    model: str

    async def get(self, path: str) -> Any:
        response = await self.client.get(path)
        response.raise_for_status()
        return response.json()

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.client.post(path, json={"model": self.model} | body)

    async def chat(self, content: str = "Say hello.", **body: Any) -> list[dict[str, Any]]:
        """The lines of a streamed answer."""
        messages = [{"role": "user", "content": content}]
        body = {"think": False, "options": {"num_predict": 32}} | body
        response = await self.post("/api/chat", messages=messages, **body)
        assert response.status_code == 200
        return [json.loads(line) for line in response.text.splitlines()]

    async def ask(self, content: str = "Say hello.", **options: Any) -> dict[str, Any]:
        """The last line of an answer."""
        return (await self.chat(content, options=options))[-1]


@pytest.fixture
async def on_double(double: OllamaDouble) -> AsyncIterator[Wire]:
    async with httpx.AsyncClient(base_url=double.url, timeout=30, trust_env=False) as client:
        yield Wire(client, MODEL)


@pytest.fixture(params=["double", pytest.param("real", marks=pytest.mark.live)])
async def wire(request: pytest.FixtureRequest) -> AsyncIterator[Wire]:
    if request.param == "double":
        url, model = request.getfixturevalue("double").url, MODEL
    else:
        url = os.environ["FOOTNOTE_LIVE_OLLAMA"]
        model = os.environ.get("FOOTNOTE_LIVE_MODEL", MODEL)
    async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False) as client:
        yield Wire(client, model)


# --- the contract --------------------------------------------------------------------------------


async def test_the_root_and_the_version_answer(wire: Wire) -> None:
    assert (await wire.client.get("/")).text == "Ollama is running"
    head = await wire.client.head("/")
    assert (head.status_code, head.content) == (200, b"")
    assert (await wire.get("/api/version"))["version"]
    assert (await wire.client.get("/api/nothing")).status_code == 404


async def test_a_chat_is_lines_of_which_the_last_is_done(wire: Wire) -> None:
    response = await wire.post(
        "/api/chat",
        messages=[{"role": "user", "content": "Say hello."}],
        think=False,
        options={"num_predict": 32},
    )
    assert response.headers["content-type"] == "application/x-ndjson"
    *lines, last = [json.loads(line) for line in response.text.splitlines()]
    assert lines
    for line in lines:
        assert line["model"] == wire.model
        assert line["created_at"]
        assert line["message"]["role"] == "assistant"
        assert line["done"] is False
        assert "eval_count" not in line
    assert "".join(line["message"]["content"] for line in lines)
    assert last["done"] is True
    assert last["done_reason"] in ("stop", "length")
    assert last["prompt_eval_count"] > 0
    assert last["eval_count"] > 0


async def test_durations_are_nanoseconds_and_add_up(wire: Wire) -> None:
    started = perf_counter()
    last = await wire.ask("Count to ten.", num_predict=32)
    took = perf_counter() - started
    parts = sum(last.get(name, 0) for name in DURATIONS[1:])
    assert 0 < parts <= last["total_duration"] <= took * 1e9


async def test_a_generation_is_the_same_with_a_response(wire: Wire) -> None:
    response = await wire.post("/api/generate", prompt="Say hello.", think=False)
    *lines, last = [json.loads(line) for line in response.text.splitlines()]
    assert "".join(line["response"] for line in lines)
    assert all("message" not in line for line in [*lines, last])
    assert last["done"] is True


async def test_without_streaming_it_is_one_object(wire: Wire) -> None:
    response = await wire.post(
        "/api/chat",
        messages=[{"role": "user", "content": "Say hello."}],
        stream=False,
        think=False,
        options={"num_predict": 8},
    )
    assert response.headers["content-type"].startswith("application/json")
    whole = response.json()
    assert whole["message"]["content"]
    assert whole["done"] is True


async def test_the_limit_of_tokens_is_a_reason(wire: Wire) -> None:
    last = await wire.ask("Count slowly from one to a hundred. one two three", num_predict=1)
    assert last["eval_count"] == 1
    assert last["done_reason"] in ("length", "stop")


async def test_an_unknown_model_is_a_404_that_names_it(wire: Wire) -> None:
    for path in ("/api/chat", "/api/generate", "/api/show", "/api/embed"):
        body = {"model": "no-such-model", "messages": [], "prompt": "a", "input": "a"}
        response = await wire.client.post(path, json=body)
        assert response.status_code == 404
        assert response.json()["error"].startswith("model 'no-such-model")
        assert response.json()["error"].endswith("not found")


async def test_what_is_no_json_is_a_400(wire: Wire) -> None:
    response = await wire.client.post("/api/chat", content=b"{")
    assert response.status_code == 400
    assert response.json()["error"]


async def test_empty_messages_load_the_model_and_zero_unloads_it(wire: Wire) -> None:
    loaded = (await wire.post("/api/chat", messages=[], keep_alive="10m")).json()
    assert (loaded["done"], loaded["done_reason"]) == (True, "load")
    assert "eval_count" not in loaded
    [resident] = [
        each for each in (await wire.get("/api/ps"))["models"] if each["name"] == wire.model
    ]
    assert resident["expires_at"]
    assert resident["size_vram"] > 0
    assert resident["context_length"] > 0
    unloaded = (await wire.post("/api/chat", messages=[], keep_alive=0)).json()
    assert unloaded["done_reason"] == "unload"
    for _ in range(100):
        names = [each["name"] for each in (await wire.get("/api/ps"))["models"]]
        if wire.model not in names:
            return
        await asyncio.sleep(0.05)
    pytest.fail("the model stayed in memory")


async def test_the_context_length_is_that_of_the_request(wire: Wire) -> None:
    await wire.ask(num_ctx=2048, num_predict=1)
    lengths = [each["context_length"] for each in (await wire.get("/api/ps"))["models"]]
    assert 2048 in lengths


async def test_models_are_listed_and_shown(wire: Wire) -> None:
    listed = {each["name"]: each for each in (await wire.get("/api/tags"))["models"]}
    assert listed[wire.model]["size"] > 0
    assert listed[wire.model]["digest"]
    shown = (await wire.post("/api/show")).json()
    assert "completion" in shown["capabilities"]
    assert shown["details"]["format"]


async def test_leaving_in_mid_stream_is_allowed(wire: Wire) -> None:
    body = {"model": wire.model, "messages": [{"role": "user", "content": "Count."}]}
    async with wire.client.stream("POST", "/api/chat", json=body) as response:
        async for _ in response.aiter_lines():
            break
    assert (await wire.ask(num_predict=4))["done"] is True


# --- only the double: time -----------------------------------------------------------------------


async def test_not_even_the_status_comes_before_the_first_token(
    double: OllamaDouble, on_double: Wire
) -> None:
    double.set(first_token_seconds=0.3, answer="one")
    reader, writer = await asyncio.open_connection("127.0.0.1", on_double.client.base_url.port)
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}).encode()
    writer.write(b"POST /api/chat HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.2)
    assert (await asyncio.wait_for(reader.readline(), 1.0)).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_loaded_model_has_a_line_without_end(double: OllamaDouble, on_double: Wire) -> None:
    await on_double.ask()
    double.set(slots=2, answer="one two", token_seconds=0.02, max_queue=1)
    ended = await asyncio.gather(*(on_double.ask() for _ in range(20)))
    assert all(each["done_reason"] == "stop" for each in ended)
    stats = double.stats()
    assert (stats.most_generating, stats.waiting, stats.in_flight) == (2, 0, 0)
    assert stats.most_in_flight > 10
    hidden = [each["total_duration"] - sum(each.get(n, 0) for n in DURATIONS[1:]) for each in ended]
    assert max(hidden) > 0.2e9


async def test_only_who_needs_a_load_is_refused_when_the_queue_is_full(
    double: OllamaDouble, on_double: Wire
) -> None:
    double.set(load_seconds=0.2, max_queue=2)
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    replies = await asyncio.gather(*(on_double.post("/api/chat", **body) for _ in range(3)))
    assert sorted(each.status_code for each in replies) == [200, 200, 503]
    [refused] = [each for each in replies if each.status_code == 503]
    assert refused.json() == {
        "error": "server busy, please try again.  maximum pending requests exceeded"
    }


async def test_loads_are_serial_and_a_model_that_loads_is_not_listed(
    double: OllamaDouble, on_double: Wire
) -> None:
    double.set(other_models=["mistral"], load_seconds=0.3)
    started = perf_counter()
    other = Wire(on_double.client, "mistral")
    asked = [asyncio.create_task(each.ask()) for each in (on_double, other)]
    await eventually(lambda: double.stats().loads == 1)
    assert (await on_double.get("/api/ps"))["models"] == []
    first, second = await asyncio.gather(*asked)
    assert perf_counter() - started >= 0.6
    assert first["load_duration"] >= 0.29e9
    assert second["load_duration"] >= 0.59e9
    names = {each["name"] for each in (await on_double.get("/api/ps"))["models"]}
    assert names == {MODEL, "mistral:latest"}


async def test_too_many_models_evict_the_one_that_leaves_first(
    double: OllamaDouble, on_double: Wire
) -> None:
    double.set(other_models=["a", "b"], max_loaded_models=2)
    for name, keep_alive in ((MODEL, -1), ("a", "30m"), ("b", "30m")):
        await Wire(on_double.client, name).chat(keep_alive=keep_alive)
    names = {each["name"] for each in (await on_double.get("/api/ps"))["models"]}
    assert names == {MODEL, "b:latest"}


async def test_a_model_leaves_when_its_time_is_over(double: OllamaDouble, on_double: Wire) -> None:
    await on_double.chat(keep_alive="100ms")
    assert len((await on_double.get("/api/ps"))["models"]) == 1
    await asyncio.sleep(0.2)
    assert (await on_double.get("/api/ps"))["models"] == []


async def test_another_context_length_loads_the_model_again(
    double: OllamaDouble, on_double: Wire
) -> None:
    for length in (2048, 2048, 4096, 2048):
        await on_double.ask(num_ctx=length)
    assert double.stats().loads == 3


async def test_who_leaves_takes_the_load_with_it(double: OllamaDouble, on_double: Wire) -> None:
    double.set(load_seconds=0.3)
    asked = asyncio.create_task(on_double.ask())
    await eventually(lambda: double.stats().loads == 1)
    asked.cancel()
    await eventually(lambda: double.stats().aborted == 1)
    await asyncio.sleep(0.4)
    assert (await on_double.get("/api/ps"))["models"] == []


async def test_answers_side_by_side_slow_each_other(double: OllamaDouble, on_double: Wire) -> None:
    double.set(slots=4, answer="word " * 20, token_seconds=0.01, slowdown=1.0)
    alone = await on_double.ask()
    together = await asyncio.gather(*(on_double.ask() for _ in range(4)))
    assert alone["eval_duration"] >= 0.19e9
    assert all(each["eval_duration"] > 2 * alone["eval_duration"] for each in together)


async def test_the_beginning_that_a_slot_knows_is_not_read_again(
    double: OllamaDouble, on_double: Wire
) -> None:
    double.set(slots=2, answer="one", prefill_token_seconds=0.002)
    prefix = "known " * 100
    cold = await on_double.ask(prefix + "first")
    warm = await on_double.ask(prefix + "second")
    other = await on_double.ask("new " * 101)
    again = await on_double.ask(prefix + "third")
    assert {each["prompt_eval_count"] for each in (cold, warm, other, again)} == {101}
    assert cold["prompt_eval_duration"] >= 0.2e9
    assert warm["prompt_eval_duration"] < cold["prompt_eval_duration"] / 2
    assert other["prompt_eval_duration"] >= 0.2e9
    assert again["prompt_eval_duration"] < cold["prompt_eval_duration"] / 2


async def test_tokens_come_in_time_however_many_at_once(
    double: OllamaDouble, on_double: Wire
) -> None:
    double.set(token_seconds=0.0005)
    last = await on_double.ask("[write 1000 tokens as a7]")
    assert last["eval_count"] == 1000
    assert 0.5e9 <= last["eval_duration"] < 1.0e9


async def test_a_script_in_the_prompt_numbers_the_tokens(on_double: Wire) -> None:
    lines = await on_double.chat("Please [write 3 tokens as a7] now.")
    assert [line["message"]["content"] for line in lines] == ["a7.1", " a7.2", " a7.3", ""]


async def test_a_thinking_model_thinks_unless_it_is_told_not_to(
    double: OllamaDouble, on_double: Wire
) -> None:
    refused = await on_double.post("/api/chat", messages=[], think=True)
    assert refused.status_code == 400
    assert refused.json() == {"error": f'"{MODEL}" does not support thinking'}
    double.set(thoughts="hm well", answer="yes")
    messages = [{"role": "user", "content": "Sure?"}]
    thinking = (await on_double.post("/api/chat", messages=messages)).text.splitlines()
    parts = [json.loads(line)["message"] for line in thinking]
    assert [part.get("thinking") for part in parts] == ["hm", " well", None, None]
    assert len(await on_double.chat()) == 2


async def test_embeddings_are_of_length_one(double: OllamaDouble, on_double: Wire) -> None:
    reply = (await on_double.post("/api/embed", input=["one", "two"])).json()
    assert [math.hypot(*each) for each in reply["embeddings"]] == pytest.approx([1.0, 1.0])
    one = (await on_double.post("/api/embed", input="one")).json()
    assert one["embeddings"] == reply["embeddings"][:1]
    double.set(fault="status_500")
    assert (await on_double.post("/api/embed", input="one")).status_code == 400


async def test_a_prompt_that_does_not_fit_is_cut_or_refused(on_double: Wire) -> None:
    assert (await on_double.ask("word " * 100, num_ctx=50))["prompt_eval_count"] == 50
    messages = [{"role": "user", "content": "word " * 100}]
    refused = await on_double.post(
        "/api/chat", messages=messages, truncate=False, options={"num_ctx": 50}
    )
    assert refused.status_code == 400


# --- only the double: faults of the whole instance -----------------------------------------------


async def test_a_wedged_instance_answers_everything_but_generation(
    double: OllamaDouble, on_double: Wire
) -> None:
    double.set(answer="word " * 50, token_seconds=0.01)
    asked = asyncio.create_task(on_double.ask())
    await eventually(lambda: double.stats().generating == 1)
    double.set(hangs=True)
    for path in ("/api/version", "/api/tags", "/api/ps"):
        await asyncio.wait_for(on_double.get(path), 1.0)
    await asyncio.sleep(1.0)
    assert not asked.done()
    double.set(hangs=False)
    assert (await asyncio.wait_for(asked, 2.0))["eval_count"] == 50


async def test_a_slow_instance_slows_what_it_has_begun(
    double: OllamaDouble, on_double: Wire
) -> None:
    double.set(answer="word " * 32, token_seconds=0.01)
    asked = asyncio.create_task(on_double.ask())
    await asyncio.sleep(0.1)
    double.set(slowness=10)
    assert (await asked)["eval_duration"] > 1e9


async def test_refusing_cuts_what_is_connected_until_it_ends(
    double: OllamaDouble, on_double: Wire
) -> None:
    double.set(answer="word " * 50, token_seconds=0.05)
    asked = asyncio.create_task(on_double.ask())
    await eventually(lambda: double.stats().generating == 1)
    double.set(refuses=True)
    with pytest.raises(httpx.TransportError):
        await asked
    with pytest.raises(httpx.ConnectError):
        await on_double.ask()
    double.set(refuses=False, answer="yes")
    assert (await on_double.ask())["eval_count"] == 1


async def test_flapping_comes_and_goes(double: OllamaDouble, on_double: Wire) -> None:
    double.set(flap_seconds=0.1)
    seen: list[bool] = []
    while len(seen) < 4:
        try:
            await on_double.get("/api/version")
            here = True
        except httpx.TransportError:
            here = False
        if not seen or seen[-1] != here:
            seen.append(here)
        await asyncio.sleep(0.01)
    double.set(flap_seconds=0)
    assert sorted(seen) == [False, False, True, True]


async def test_a_leaked_slot_is_never_given_again(double: OllamaDouble, on_double: Wire) -> None:
    double.set(slots=2, answer="word " * 50, token_seconds=0.05, leaks_slots=True)
    asked = asyncio.create_task(on_double.ask())
    await eventually(lambda: double.stats().generating == 1)
    asked.cancel()
    await eventually(lambda: double.stats().aborted == 1)
    double.set(answer="one two", token_seconds=0.01)
    await asyncio.gather(*(on_double.ask() for _ in range(4)))
    stats = double.stats()
    assert (stats.generating, stats.most_generating, stats.in_flight) == (1, 2, 0)


async def test_faults_are_switched_on_its_own_port_too(on_double: Wire) -> None:
    switched = await on_double.client.post("/double/faults", json={"fault": "status_500"})
    assert switched.status_code == 200
    failed = await on_double.post("/api/chat", messages=[{"role": "user", "content": "Hi"}])
    assert (failed.status_code, list(failed.json())) == (500, ["error"])
    unknown = await on_double.client.post("/double/faults", json={"nonsense": 1})
    assert unknown.status_code == 400
