"""Answers that paraphrases share, in the service: judged, and stopped where they are wrong."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr

from app.answering.base import Answer, Citation
from app.cache.judging import Judge, say_the_same
from app.cache.store import RedisStore, open_clients
from app.cache.tallies import ENOUGH, InProcessTallies, RedisTallies, Tallies, Tally
from app.config import Settings
from app.errors import GenerationUnavailable
from tests.doubles.ollama import OllamaDouble
from tests.redis_server import RedisServer, needs_redis, running_redis
from tests.service import Service, ingest, open_service, working
from tests.test_api_end_to_end import TRAVEL

pytestmark = needs_redis

ASKED = "Who approves trips abroad?"
REWORDED = ("Who approves the trips abroad?", "Who is approving trips abroad?")
DECLINES = "The sources do not hold an answer."

# --- when to stop -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("judged", "wrong", "is_too_bad"),
    [
        (0, 0, False),
        (1, 0, False),
        (1, 1, True),
        (5, 1, True),
        (6, 1, False),
        (35, 2, True),
        (36, 2, False),
        (ENOUGH - 1, 1, False),
        (ENOUGH, 0, False),
        (ENOUGH, 1, True),
        (473, 1, False),
        (10_000, 80, False),
        (10_000, 90, True),
    ],
)
def test_it_stops_where_it_is_shown_to_be_bad_or_after_enough_not_to_be_good(
    judged: int, wrong: int, is_too_bad: bool
) -> None:
    assert Tally(judged, wrong).is_too_bad is is_too_bad


@pytest.fixture(params=["redis", "in-process"])
async def tallies(
    request: pytest.FixtureRequest, redis_server: RedisServer
) -> AsyncIterator[Tallies]:
    if request.param == "in-process":
        yield InProcessTallies()
        return
    clients = open_clients(Settings(redis_url=SecretStr(redis_server.url)))
    assert clients is not None
    yield RedisTallies(RedisStore(clients, {}, timeout_seconds=2.0), clients[0])
    for client in clients:
        await client.aclose(close_connection_pool=True)


async def test_a_tally_counts_stops_for_good_and_begins_anew(tallies: Tallies) -> None:
    assert await tallies.of(1) == Tally()
    for _ in range(6):
        await tallies.add(1, is_wrong=False)
    assert await tallies.of(1) == Tally(judged=6)
    await tallies.add(1, is_wrong=True)
    assert await tallies.add(1, is_wrong=True) == Tally(8, 2, is_stopped=True)
    for _ in range(40):  # what was being judged already
        await tallies.add(1, is_wrong=False)
    assert await tallies.of(1) == Tally(48, 2, is_stopped=True)
    assert await tallies.of(2) == Tally()
    await tallies.reset(1)
    assert await tallies.of(1) == Tally()


async def test_while_nobody_knows_nothing_is_shared() -> None:
    with running_redis() as server:
        clients = open_clients(Settings(redis_url=SecretStr(server.url)))
        assert clients is not None
        judge = Judge(
            RedisTallies(RedisStore(clients, {}, timeout_seconds=0.2), clients[0]), share=1
        )
        assert await judge.trusts(1)
        server.kill()
        assert not await judge.trusts(1)
        assert await judge.tally(1) is None
        for client in clients:
            await client.aclose(close_connection_pool=True)


async def test_a_judgement_that_fails_is_none() -> None:
    tallies = InProcessTallies()
    judge = Judge(tallies, share=1.0)

    async def unavailable() -> bool | None:
        raise GenerationUnavailable

    async def broken() -> bool | None:
        raise RuntimeError

    async def nobody_can_say() -> bool | None:
        return None

    for compare in (unavailable, broken, nobody_can_say):
        judge.consider(1, compare)
        await judge.settle()
    assert await tallies.of(1) == Tally()


# --- what is the same -------------------------------------------------------------------------------


def answer(text: str, *markers: int, mode: Any = "generated") -> Answer:
    places: dict[str, Any] = dict.fromkeys(("chunk_id", "document_id", "title", "uri", "page"))
    citations = [Citation(marker=one, start=0, end=1, quote="q", **places) for one in markers]
    return Answer(text, citations, [], True, mode, "model", {})


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (answer("Ada approves it [1].", 1), answer("It is approved by Ada [1][2].", 1, 2), True),
        (answer("Ada approves it [1].", 1), answer("Ada approves it [2].", 2), False),
        (answer("It takes 20 days [1].", 1), answer("It takes 25 days [1].", 1), False),
        (answer("Dogs are allowed [1].", 1), answer("Dogs are not allowed [1].", 1), False),
        (answer("Ada approves it [1].", 1), answer("Hotels have breakfast [1].", 1), False),
        (answer("No.", mode="declined"), answer("I cannot say.", mode="declined"), True),
        (answer("Ada approves it [1].", 1), answer("I cannot say.", mode="declined"), False),
    ],
)
async def test_answers_are_compared(
    one: Answer, other: Answer, is_same: bool, embedder: Any
) -> None:
    class Embedding:
        async def embed(self, texts: Any, kind: Any) -> Any:
            return embedder.embed(texts, kind)

    embedding: Any = Embedding()
    assert await say_the_same(one, other, embedding) is is_same
    assert await say_the_same(other, one, embedding) is is_same


# --- in the service ---------------------------------------------------------------------------------


@pytest.fixture
def sharing(cached_settings: Settings) -> Settings:
    update = {
        "cache_paraphrases": True,
        "cache_paraphrase_similarity": 0.8,
        "cache_paraphrase_judged_share": 0.0,
    }
    return cached_settings.model_copy(update=update)


async def ask(service: Service, question: str, **more: Any) -> dict[str, Any]:
    reply = await service.client.post("/api/chat", json={"question": question, **more})
    assert reply.status_code == 200, reply.text
    told: dict[str, Any] = reply.json()
    return told


async def paraphrases_of(service: Service) -> dict[str, Any]:
    stats = (await service.client.get("/api/advanced-cache-stats")).json()
    told: dict[str, Any] = stats["layers"]["answer"]["paraphrases"]
    return told


async def test_another_wording_gets_the_answer_and_says_whose_it_is(
    sharing: Settings, shared_embedder: None, embedder: Any, double: OllamaDouble
) -> None:
    async with open_service(sharing) as service, working(sharing, embedder):
        await ingest(service, "travel.md", TRAVEL)
        first = await ask(service, ASKED)
        assert first["paraphrase_of"] is None
        before = double.stats().completed
        second = await ask(service, REWORDED[0])
        assert (second["cache"]["answer"], second["paraphrase_of"]) == ("hit", ASKED)
        for name in ("answer", "citations", "sentences", "mode", "model"):
            assert second[name] == first[name]
        assert second["usage"]["saved_completion_tokens"] == first["usage"]["completion_tokens"]
        assert double.stats().completed == before
        # Neither another question, nor another history, nor quotes, nor what was edited since.
        for others in (
            {"question": "Who does not approve trips abroad?"},
            {"question": REWORDED[0], "conversation_id": first["conversation_id"]},
            {"question": REWORDED[0], "model": "extractive"},
        ):
            told = await ask(service, **others)
            assert (told["cache"]["answer"], told["paraphrase_of"]) == ("miss", None), others
        await ingest(service, "travel.md", TRAVEL.replace("Ada Lovelace", "Grace Hopper"))
        told = await ask(service, REWORDED[1])
        assert (told["cache"]["answer"], told["paraphrase_of"]) == ("miss", None)
        assert "Grace" in told["answer"]
        told = await paraphrases_of(service)
        assert (told["status"], told["shared"], told["judged"]) == ("on", 1, 0)


async def test_what_was_shared_is_judged_and_stopped_when_it_is_wrong(
    sharing: Settings, shared_embedder: None, embedder: Any, double: OllamaDouble
) -> None:
    settings = sharing.model_copy(update={"cache_paraphrase_judged_share": 1.0})
    async with open_service(settings) as service, working(settings, embedder):
        judge = service.resources.caches.judge
        await ingest(service, "travel.md", TRAVEL)
        await ask(service, ASKED)
        assert (await ask(service, REWORDED[0]))["paraphrase_of"] == ASKED
        await judge.settle()
        told = await paraphrases_of(service)
        assert (told["status"], told["judged"], told["wrong"]) == ("on", 1, 0)
        assert (told["wrong_at_least"], told["wrong_at_most"]) == (0.0, 0.95)
        # What was written to judge it is kept: the next one gets an answer of his own.
        again = await ask(service, REWORDED[0])
        assert (again["cache"]["answer"], again["paraphrase_of"]) == ("hit", None)

        double.set(answer=DECLINES)
        assert (await ask(service, REWORDED[1]))["paraphrase_of"] in {ASKED, REWORDED[0]}
        await judge.settle()
        told = await paraphrases_of(service)
        assert (told["status"], told["judged"], told["wrong"]) == ("stopped", 2, 1)
        double.set(answer=None)
        metrics = (await service.client.get("/metrics")).text
        assert 'footnote_degraded{part="paraphrases"} 1.0' in metrics
        assert 'footnote_cache_paraphrases_total{outcome="wrong"}' in metrics
        told = await ask(service, "Who approves all the trips abroad?")
        assert told["cache"]["answer"] == "miss"
        told = await ask(service, "Who approves all trips abroad?")
        assert (told["cache"]["answer"], told["paraphrase_of"]) == ("miss", None)

        await service.client.delete("/api/admin/cache?layer=answer")
        assert (await paraphrases_of(service))["status"] == "on"
        await ask(service, ASKED)
        assert (await ask(service, REWORDED[0]))["paraphrase_of"] == ASKED
        await judge.settle()
        metrics = (await service.client.get("/metrics")).text
        assert 'footnote_degraded{part="paraphrases"} 0.0' in metrics


async def test_callers_of_other_groups_share_nothing(
    sharing: Settings, shared_embedder: None, embedder: Any
) -> None:
    async with open_service(sharing) as service, working(sharing, embedder):
        await ingest(service, "travel.md", TRAVEL)
        staff = await service.key("read", groups=frozenset({"staff"}))
        board = await service.key("read", groups=frozenset({"board"}))
        chat = service.client.post
        first = await chat("/api/chat", json={"question": ASKED}, headers=staff)
        assert first.json()["cache"]["answer"] == "miss"
        body = {"question": REWORDED[0]}
        assert (await chat("/api/chat", json=body, headers=board)).json()["paraphrase_of"] is None
        body = {"question": REWORDED[1]}
        told = (await chat("/api/chat", json=body, headers=staff)).json()
        assert told["paraphrase_of"] == ASKED


async def test_it_is_off_where_it_was_not_asked_for(
    sharing: Settings, shared_embedder: None, embedder: Any
) -> None:
    settings = sharing.model_copy(update={"cache_paraphrases": False})
    async with open_service(settings) as service, working(settings, embedder):
        await ingest(service, "travel.md", TRAVEL)
        await ask(service, ASKED)
        assert (await ask(service, REWORDED[0]))["cache"]["answer"] == "miss"
        assert (await paraphrases_of(service))["status"] == "off"
