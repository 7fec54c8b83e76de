"""Late interaction: signs and MaxSim by themselves, then stored, kept, searched and taken away."""

import asyncio
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.config import Settings
from app.embedding.token_signs import TokenReader, pack_signs, word_spans
from app.terms import extract_terms
from ingestion.pipeline import open_tools
from ingestion.token_filling import TokenFiller
from ingestion.verification import verify
from reranker.base import RerankerUnavailable
from reranker.fusion import standardise
from reranker.late_interaction import LateInteraction, max_sim
from tests.service import Service, ingest, working


def random_tokens(count: int, dimensions: int, seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((count, dimensions)).astype(np.float32)


class TestMaxSim:
    @pytest.mark.parametrize("dimensions", [8, 20, 64, 384])
    def test_is_the_weighted_mean_of_the_best_agreements(self, dimensions: int) -> None:
        mean = random_tokens(1, dimensions, 9)[0] / 4
        query = random_tokens(3, dimensions, 0)
        passages = [random_tokens(count, dimensions, count) for count in (5, 1, 40)]
        weights = np.array([2.0, 0.0, 1.0], np.float32)
        found = max_sim(
            pack_signs(query, mean), weights, [pack_signs(one, mean) for one in passages]
        )
        bits = 8 * -(-dimensions // 8)  # what fills the last byte agrees
        for score, passage in zip(found, passages, strict=True):
            differ = ((query > mean)[:, None] != (passage > mean)[None]).sum(axis=2)
            best = 1 - differ.min(axis=1) / bits
            assert score == pytest.approx((2 * best[0] + best[2]) / 3, abs=1e-6)

    def test_says_nothing_of_a_passage_without_tokens(self) -> None:
        some = pack_signs(random_tokens(4, 16, 1), np.zeros(16, np.float32))
        none = some[:0]
        scores = max_sim(some[:2], np.ones(2, np.float32), [none, some, none])
        assert np.isnan(scores).tolist() == [True, False, True]
        assert scores[1] == 1
        assert np.isnan(max_sim(none, np.ones(0, np.float32), [some])).all()
        assert np.isnan(max_sim(some, np.zeros(4, np.float32), [some])).all()

    def test_what_says_nothing_counts_nothing_in_fusion(self) -> None:
        some = standardise(np.array([np.nan, 1.0, 3.0, np.nan]))
        assert some.tolist() == [0.0, -1.0, 1.0, 0.0]
        assert standardise(np.array([np.nan, np.nan])).tolist() == [0.0, 0.0]


def test_tokens_belong_to_words() -> None:
    text = "ERR_RESET, in v2.3.1!"
    tokens = [(0, 3), (4, 9), (9, 10), (11, 13), (14, 16), (17, 18), (20, 21)]
    words = [text[start:end] for start, end in word_spans(text, tokens)]
    assert words == ["ERR_RESET", "ERR_RESET", ",", "in", "v2.3.1", "v2.3.1", "!"]


class TestReranker:
    def test_prefers_what_the_query_is_about(self, embedder: Any) -> None:
        reader = TokenReader(embedder, str.isalpha)
        reranker = LateInteraction(reader.read, name="late-interaction", digest=embedder.digest)
        passages = [
            "Invoices are paid within thirty days.",
            "Dogs may travel in the passenger cabin if they are small.",
            "...",
        ]
        scores = reranker.score("taking a dog on the plane", passages)
        assert scores.argmax() == 1
        # Nothing is said of what has no words, so it stands in the middle.
        assert scores[2] == pytest.approx(scores[:2].mean())

    def test_says_why_it_cannot(self) -> None:
        def away(*_: Any) -> Any:
            raise OSError("gone")

        with pytest.raises(RerankerUnavailable, match="late-interaction failed: gone"):
            LateInteraction(away, name="late-interaction", digest="").score("a", ["b"])

    def test_a_token_costs_48_bytes_and_stop_words_none(self, embedder: Any) -> None:
        reader = TokenReader(embedder, lambda word: bool(extract_terms(word)))
        (read,) = reader.read(["The dog is in the cabin, and it may stay."], "document")
        assert read.words == ("dog", "cabin", "may", "stay")
        assert read.signs.shape == (4, 48)


DOGS = "Small dogs may travel in the cabin when they stay in a bag under the seat. " * 9
BIKES = "Bikes travel in the hold, with pedals taken off and handlebars turned in line. " * 9
FIRST = f"# Dogs\n\n{DOGS}\n\n# Bikes\n\n{BIKES}\n"
SECOND = FIRST.replace("hold", "train")


class TestStored:
    async def test_is_made_kept_searched_counted_and_taken_away(
        self, service: Service, engine: AsyncEngine, service_settings: Settings, embedder: Any
    ) -> None:
        client = service.client

        async def stored() -> dict[int, bytes]:
            async with engine.connect() as connection:
                rows = await connection.execute(text("SELECT chunk_id, signs FROM token_vectors"))
                return {chunk_id: bytes(signs) for chunk_id, signs in rows}

        async def opinions() -> list[Any]:
            question = {"query": "dog on board", "collection": "travel", "explain": True}
            found = await client.post("/api/search", json=question)
            assert found.status_code == 200, found.text
            return [hit["explanation"].get("late_interaction") for hit in found.json()["hits"]]

        async def ask_for_tokens(wanted: bool) -> None:
            change = {"settings": {"search": {"token_vectors": wanted}}}
            assert (await client.patch("/api/collections/travel", json=change)).status_code == 200
            async with open_tools(service_settings, engine, embedder) as tools:

                async def opened() -> Any:
                    return tools

                await TokenFiller(engine, opened).fill()

        await client.post("/api/collections", json={"name": "travel"})
        async with working(service_settings, embedder):
            await ingest(service, "travel.md", FIRST, collection="travel")
        assert await opinions() == [None, None]

        await ask_for_tokens(True)
        first = await stored()
        assert len(first) == 2
        assert all(len(signs) % 48 == 0 and signs for signs in first.values())
        best, other = await opinions()
        assert best["rank"] == 1
        assert best["score"] > other["score"]
        assert best["standardised"] == pytest.approx(1)

        async with working(service_settings, embedder):
            document = await ingest(service, "travel.md", SECOND, collection="travel")
            while len(second := await stored()) < 2:  # the worker looks every few seconds
                await asyncio.sleep(0.1)
        assert not first.keys() & second.keys()
        assert first[min(first)] == second[min(second)]  # about dogs, as it was
        assert first[max(first)] != second[max(second)]
        [verdict] = await verify(engine, 1, "travel")
        assert verdict.problems == []
        assert verdict.token_vectors == 2

        gone = await client.delete(f"/api/documents/{document['id']}")
        assert gone.json()["token_vectors"] == 2
        assert await stored() == {}

    async def test_go_when_nobody_asks_for_them_any_more(
        self, service: Service, engine: AsyncEngine, service_settings: Settings, embedder: Any
    ) -> None:
        change = {"settings": {"search": {"token_vectors": True}}}
        await service.client.post("/api/collections", json={"name": "travel"} | change)
        async with working(service_settings, embedder):
            await ingest(service, "travel.md", FIRST, collection="travel")
        async with open_tools(service_settings, engine, embedder) as tools:

            async def opened() -> Any:
                return tools

            filler = TokenFiller(engine, opened)
            await filler.fill()
            async with engine.connect() as connection:
                count = text("SELECT count(*) FROM token_vectors")
                assert (await connection.execute(count)).scalar_one() == 2
                change["settings"]["search"]["token_vectors"] = False
                await service.client.patch("/api/collections/travel", json=change)
                await filler.fill()
                await connection.rollback()
                assert (await connection.execute(count)).scalar_one() == 0
        question = {"query": "dog on board", "collection": "travel", "explain": True}
        found = (await service.client.post("/api/search", json=question)).json()
        assert "late_interaction" not in found["hits"][0]["explanation"]


async def test_verify_finds_torn_token_vectors(
    service: Service, engine: AsyncEngine, service_settings: Settings, embedder: Any
) -> None:
    async with working(service_settings, embedder):
        await ingest(service, "travel.md", FIRST)
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO token_vectors SELECT chunk_id, model_id, tenant_id, collection_id,"
                " 1, 48, '\\x0011' FROM embeddings LIMIT 1"
            )
        )
    [verdict] = await verify(engine, 1)
    assert verdict.problems_count == 1
    assert "no whole tokens" in verdict.problems[0]
