"""Looking for another wording: what is kept of it, how much, and what does no harm."""

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np

from app.access import Caller
from app.answering.base import Answer, Brief, Finished, Question
from app.cache import paraphrases
from app.cache.answers import CachedWriter
from app.cache.base import LAYERS, Bounds, LayerName
from app.cache.in_process import InProcessStore
from app.cache.judging import Judge
from app.cache.layer import Layer
from app.cache.paraphrases import LONGEST_CHARS, Paraphrases
from app.cache.single_flight import Flights
from app.cache.statistics import Statistics
from app.cache.tallies import InProcessTallies
from app.errors import EmbeddingUnavailable
from app.search.base import SearchResult
from tests.cache_world import Document, Ledger, World

CALLER = Caller(1, frozenset({"read"}))
ASKED, REWORDED = "Who approves travel?", "Who approves the travel?"


class Vectors:
    """A QueryEmbedding in which all texts have the same vector but those that are named."""

    def __init__(self) -> None:
        self.embedder: Any = self
        self.digest = "vectors"
        self.others: dict[str, list[float]] = {}
        self.error: Exception | None = None

    async def embed(self, texts: Any, kind: str) -> Any:
        if self.error is not None:
            raise self.error
        return np.array([self.others.get(text, [1.0, 0.0]) for text in texts], np.float32)


class Bench:
    """A CachedWriter over the world, whose paraphrases are on."""

    def __init__(self, *, similarity: float = 0.9, share: float = 0.0) -> None:
        self.world = World()
        self.world.shelves[1].documents.append(Document(1, "Ada approves travel."))
        large = Bounds(3600, 10**8, 10**8, 10**7)
        self.store = InProcessStore(dict.fromkeys(LAYERS, large))
        self.tallies = InProcessTallies()
        self.judge = Judge(self.tallies, share=share)
        self.vectors = Vectors()
        self.layer = Layer("answer", self.store, Statistics())
        embedding: Any = self.vectors
        ledger: Any = Ledger()
        found = Paraphrases(self.layer, embedding, self.judge, similarity=similarity)
        self.writer = CachedWriter(self.world, embedding, ledger, self.layer, Flights(None), found)

    async def ask(
        self, text: str, change: Callable[[Brief], Brief] = lambda brief: brief
    ) -> Answer:
        hits = [self.world.hit(CALLER, one) for one in self.world.visible(CALLER)]
        result = SearchResult(hits, None, [], self.world.scope(CALLER))
        model: Any = self.world
        brief = Brief(Question(text, ("books",)), text, result, model, self.world.options)
        async with aclosing(self.writer.write(CALLER, change(brief))) as writing:
            events = [event async for event in writing]
        assert isinstance(events[-1], Finished)
        return events[-1].answer


async def test_the_nearest_wording_is_taken() -> None:
    bench = Bench(similarity=0.6)
    bench.vectors.others = {"Who approves travels?": [0.8, 0.6]}
    await bench.ask(ASKED)
    await bench.layer.store.clear("answer")
    await bench.ask("Who approves travels?")
    second = await bench.ask(ASKED)
    assert second.paraphrase_of == "Who approves travels?"
    assert (await bench.ask(REWORDED)).paraphrase_of == "Who approves travels?"


async def test_what_is_not_near_is_not_shared() -> None:
    bench = Bench()
    bench.vectors.others = {REWORDED: [0.8, 0.6]}
    await bench.ask(ASKED)
    assert (await bench.ask(REWORDED)).cache["answer"] == "miss"


async def test_answers_that_were_shared_are_not_shared_on() -> None:
    """Only what was written for a question stands under it."""
    bench = Bench()
    await bench.ask(ASKED)
    for wording in (REWORDED, "Who approves a travel?", "Who approves travels?"):
        assert (await bench.ask(wording)).paraphrase_of == ASKED


async def test_few_wordings_are_kept_and_the_latest(monkeypatch: Any) -> None:
    monkeypatch.setattr(paraphrases, "KEPT", 2)
    bench = Bench()
    for text in (ASKED, "Who pays rent?", "Where is it?"):
        await bench.ask(text)
    assert (await bench.ask(REWORDED)).paraphrase_of is None
    assert (await bench.ask("Where is it")).paraphrase_of == "Where is it?"


async def test_an_answer_that_is_gone_is_written_anew() -> None:
    bench = Bench()
    await bench.ask(ASKED)
    kept = bench.store._buckets["answer"]["1"]
    for key, (_, value) in list(kept.items()):
        if b"Ada approves" in value:
            del kept[key]
    assert (await bench.ask(REWORDED)).cache["answer"] == "miss"


async def test_an_index_that_cannot_be_read_is_none(monkeypatch: Any) -> None:
    bench = Bench()
    await bench.ask(ASKED)
    get = bench.store.get

    async def spoilt(layer: LayerName, keys: Any) -> Any:
        return [b"\xc1" if one is not None else None for one in await get(layer, keys)]

    monkeypatch.setattr(bench.store, "get", spoilt)
    assert (await bench.ask(REWORDED)).cache["answer"] == "miss"


async def test_without_a_vector_the_question_is_answered_all_the_same() -> None:
    bench = Bench()
    await bench.ask(ASKED)
    bench.vectors.error = EmbeddingUnavailable()
    assert (await bench.ask(REWORDED)).cache["answer"] == "miss"
    assert (await bench.ask(REWORDED)).cache["answer"] == "hit"


async def test_quotes_and_long_questions_share_nothing() -> None:
    bench = Bench()
    long = "Who approves travel" + " of somebody" * (LONGEST_CHARS // 10) + "?"
    await bench.ask(long)
    assert (await bench.ask(f"{long} Please.")).cache["answer"] == "miss"
    await bench.ask(ASKED, lambda brief: replace(brief, model=None))
    told = await bench.ask(REWORDED, lambda brief: replace(brief, model=None))
    assert told.cache["answer"] == "miss"


async def test_the_judge_is_asked_for_a_share() -> None:
    bench = Bench(share=1.0)
    await bench.ask(ASKED)
    assert (await bench.ask(REWORDED)).paraphrase_of == ASKED
    await bench.judge.settle()
    tally = await bench.tallies.of(1)
    assert tally is not None
    assert tally.judged == 1
    assert (await bench.ask(REWORDED)).paraphrase_of is None
    never = Bench(share=0.0)
    await never.ask(ASKED)
    await never.ask(REWORDED)
    await never.judge.settle()
    assert (await never.tallies.of(1)) == type(tally)()
