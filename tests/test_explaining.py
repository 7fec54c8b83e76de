"""What `footnote search --explain` draws, narrow and wide."""

import io
from typing import Any

import pytest
from rich.console import Console

from app.commands.explaining import print_explained


def leg(rank: int | None, score: float, share: float) -> dict[str, Any]:
    return {"rank": rank, "score": score, "standardised": share}


def hit(number: int, **explanation: Any) -> dict[str, Any]:
    return {
        "title": f"The handbook of the storehouse, volume {number}",
        "heading": ["Opening and closing", "When nobody is there to open it"],
        "uri": f"file:///srv/documents/handbooks/storehouse/volume-{number}/opening-and-closing.md",
        "page": number,
        "score": 3.0 - number,
        "explanation": explanation,
    }


REPLY: dict[str, Any] = {
    "hits": [
        hit(
            1,
            vector=leg(2, 0.71234, 2.123),
            keyword=leg(None, 0.0, -0.5),
            rerank={"from": 2, "to": 1, "score": 0.91, "standardised": 1.2},
        ),
        hit(
            2,
            vector=leg(1, 0.8, 2.5),
            keyword=leg(1, 12.5, 3.1),
            rerank={"from": 1, "to": 2, "score": 0.2, "standardised": -0.3},
        ),
        hit(3, vector=leg(3, 0.5, 0.4), keyword=leg(2, 9.5, 1.1)),
    ],
    "took_ms": 131.25,
    "explanation": {
        "mode": "hybrid",
        "models": {"embedding": "all-MiniLM-L6-v2", "reranker": "own"},
        "weights": {"vector": 1.0, "keyword": 1.0},
        "candidates": {"vector": 100, "keyword": 87},
        "passages": 12345,
        "query": {"phrases": ["cold room"], "excluded": []},
        "terms": {
            "storehouse": {"passages": 1200, "idf": 2.25},
            "config*": {"passages": 30, "idf": 5.5, "stands_for": ["config", "configuration"]},
        },
        "filtered": {"fields": ["team", "year"], "left": 321},
        "rerank": {"model": "own", "passages": 2, "share": 0.5},
        "cache": {"embedding": "off: nothing is cached here"},
        "stages_ms": {"scope": 0.5, "keyword": 2.25, "rerank": 110.0, "fusion": 0.0},
    },
}


def drawn(reply: dict[str, Any], width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    page = Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False)
    monkeypatch.setattr("app.commands.explaining.console", lambda: page)
    print_explained(reply)
    assert isinstance(page.file, io.StringIO)
    return page.file.getvalue()


@pytest.mark.parametrize("width", [80, 140])
def test_everything_is_told_within_the_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    page = drawn(REPLY, width, monkeypatch)
    assert max(len(line.rstrip()) for line in page.splitlines()) <= width
    told = " ".join(page.split())
    for words in (
        "words", "meaning", "reranked", "score",
        "2 ↑ 1", "1 ↓ 2", "0.712", "+2.12", "12.500", "+3.10", "-0.50", "0.910",
        "storehouse 1,200 2.25", "config* 30 5.50 config, configuration", "phrases cold room",
        "team, year: 321 of 12,345 passages left", "weight 1, 87 candidates of 12,345",
        "all-MiniLM-L6-v2", "110.0 ms", "in all 131.2 ms", "off: nothing is cached here",
    ):  # fmt: skip
        assert words in told, words


def test_what_was_skipped_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    skipped = "not done: it would have taken more than 1 s"
    reply = {"hits": [], "took_ms": 1.0, "explanation": {"rerank": skipped, "weights": {}}}
    page = drawn(reply, 80, monkeypatch)
    assert "Nothing was found." in page
    assert skipped in page


def test_a_search_by_one_leg_has_one_column(monkeypatch: pytest.MonkeyPatch) -> None:
    only = {**hit(1, keyword={"rank": 1, "score": 4.5}), "title": "\x1b[31mred\x1b[0m"}
    explanation = {"mode": "keyword", "weights": {"keyword": 1.0}, "terms": {}}
    page = drawn({"hits": [only], "took_ms": 1.0, "explanation": explanation}, 80, monkeypatch)
    assert "meaning" not in page
    assert "4.500" in page
    assert "\x1b" not in page
