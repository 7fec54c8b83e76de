"""Documents and passages that say nearly the same: found, grouped, given once."""

import random
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from app.config import Settings
from app.documents.duplicates import group
from ingestion.signatures import BANDS_COUNT, sign
from tests.service import Service, ingest, open_service, working


def prose(words_count: int, seed: int = 1) -> list[str]:
    chooser = random.Random(seed)
    return [f"word{chooser.randrange(2000)}" for _ in range(words_count)]


def changed(words: list[str], share: float, seed: int = 2) -> list[str]:
    """The text with one block of words in the middle replaced."""
    count = round(len(words) * share)
    start = len(words) // 3
    return [*words[:start], *prose(count, seed), *words[start + count :]]


def similarity(one: str, other: str) -> float:
    minima = np.frombuffer(sign(one).minhash, "<u4"), np.frombuffer(sign(other).minhash, "<u4")
    return float(np.mean(minima[0] == minima[1]))


# --- signatures -----------------------------------------------------------------------------------


def test_a_signature_ignores_case_punctuation_and_space() -> None:
    assert sign("One, two; three four FIVE six.") == sign("one two\n\nthree four five   six")
    assert sign("one two three four five six") != sign("one two three four five seven")


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.6])
def test_similarity_estimates_the_share_of_common_shingles(share: float) -> None:
    words = prose(3000)
    kept = 1 - share
    expected = kept / (2 - kept)
    assert similarity(" ".join(words), " ".join(changed(words, share))) == pytest.approx(
        expected, abs=0.12
    )


def test_texts_that_share_nine_tenths_meet_and_strangers_do_not() -> None:
    words = prose(2000)
    own = set(sign(" ".join(words)).bands)
    assert len(own) == BANDS_COUNT
    assert all(own & set(sign(" ".join(changed(words, 0.04, seed))).bands) for seed in range(50))
    strangers = [set(sign(" ".join(prose(2000, seed))).bands) for seed in range(100, 150)]
    assert not any(own & other for other in strangers)


@pytest.mark.parametrize("text", ["", "one", "one two", "\u6f22\u5b57" * 50, "\ud83d\ude00 " * 9])
def test_every_text_has_a_signature(text: str) -> None:
    text = text.encode("utf-16", "surrogatepass").decode("utf-16")
    signature = sign(text)
    assert (len(signature.minhash), len(signature.bands)) == (512, BANDS_COUNT)
    assert all(-(2**31) <= band < 2**31 for band in signature.bands)


def test_a_script_without_spaces_is_compared_by_its_characters() -> None:
    chooser = random.Random(3)
    text = "".join(chr(0x4E00 + chooser.randrange(3000)) for _ in range(2000))
    assert similarity(text, text[:1000] + "\u4e00" + text[1000:]) > 0.9


# --- groups ---------------------------------------------------------------------------------------


class Row:
    def __init__(self, text: str) -> None:
        self.id = uuid4()
        self.title = self.uri = text[:10]
        self.signature = sign(text).minhash


def test_groups_are_of_the_similar_only_though_a_band_was_shared() -> None:
    words = prose(1000)
    original, copy = Row(" ".join(words)), Row(" ".join(changed(words, 0.02)))
    stranger = Row(" ".join(prose(1000, 9)))
    rows = {row.id: row for row in (original, copy, stranger)}
    [found] = group(rows, [[stranger.id, copy.id, original.id], [stranger.id, copy.id]])
    assert [one.document_id for one in found] == [original.id, copy.id]
    assert found[0].similarity == 1.0
    assert found[1].similarity >= 0.85


# --- over HTTP ------------------------------------------------------------------------------------


@pytest.fixture
async def service(
    service_settings: Settings, shared_embedder: None, embedder: Any
) -> AsyncIterator[Service]:
    async with open_service(service_settings) as opened, working(service_settings, embedder):
        yield opened


async def get(service: Service, path: str, **options: Any) -> Any:
    reply = await service.client.get(path, **options)
    assert reply.status_code == 200, reply.text
    return reply.json()


RULE = "Every trip abroad is approved by the head of operations, who answers within two days. " * 3


async def test_near_duplicates_are_reported_and_collapsed(service: Service) -> None:
    words = " ".join(prose(150))
    first = await ingest(service, "first.md", f"# Rules\n\n{RULE}\n\n{words}")
    second = await ingest(service, "second.md", f"# Rules\n\n{RULE}\n\n{words} and more")
    hidden = await ingest(service, "third.md", f"# Rules\n\n{RULE}\n\n{words}", groups="board")
    other = await ingest(service, "other.md", f"# Else\n\n{' '.join(prose(200, 5))}")

    found = await get(service, f"/api/documents/{first['id']}/duplicates")
    assert {one["document_id"] for one in found["duplicates"]} == {second["id"], hidden["id"]}
    assert found["duplicates"][0] == {
        "document_id": hidden["id"],
        "title": hidden["title"],
        "uri": hidden["uri"],
        "similarity": 1.0,
    }
    groups = (await get(service, "/api/collections/default/duplicates"))["groups"]
    assert [[one["document_id"] for one in group] for group in groups] == [
        [first["id"], second["id"], hidden["id"]]
    ]
    assert (await get(service, f"/api/documents/{other['id']}/duplicates"))["duplicates"] == []

    # Who may not see a copy does not hear of it.
    staff = await service.key("read", groups=["staff"])
    seen = await get(service, f"/api/documents/{first['id']}/duplicates", headers=staff)
    assert [one["document_id"] for one in seen["duplicates"]] == [second["id"]]
    reply = await service.client.get(f"/api/documents/{hidden['id']}/duplicates", headers=staff)
    assert reply.status_code == 404
    elsewhere = await service.key("read", collections=["elsewhere"])
    reply = await service.client.get("/api/collections/default/duplicates", headers=elsewhere)
    assert reply.status_code == 404

    question = {"query": "Who approves trips abroad?", "limit": 2}
    plain = (await service.client.post("/api/search", json=question)).json()["hits"]
    assert len({hit["text"] for hit in plain}) == 1
    reply = await service.client.post("/api/search", json={**question, "collapse_duplicates": True})
    best, *others = reply.json()["hits"]
    assert best["chunk_id"] == plain[0]["chunk_id"]
    assert {best["document_id"], *(copy["document_id"] for copy in best["copies"])} == {
        first["id"],
        second["id"],
        hidden["id"],
    }
    assert len(others) == 1
    assert RULE.strip() not in others[0]["text"]
