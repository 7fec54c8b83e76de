from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.config import Settings
from app.search import matching, phrases
from app.search.base import Mode
from app.search.phrases import phrase_pattern
from app.terms import fold
from tests.passages import Source
from tests.searching import Index, open_index

PASSAGES = [
    "travel must be approved by the manager before booking",
    "the travel policy covers trains flights and hotels",
    "hotels near the office have a company rate",
    "the company pays any rate of hotels that the policy allows",
    "error ERR_CONN_RESET means the proxy closed the connection",
    "connections are configured in the configuration of the proxy",
]


@pytest.fixture
async def index(engine: AsyncEngine, settings: Settings) -> AsyncIterator[Index]:
    async with open_index(engine, settings) as opened:
        await opened.fill(PASSAGES)
        yield opened


@pytest.mark.parametrize("mode", ["hybrid", "vector", "keyword"])
async def test_only_passages_with_the_phrase_are_found(index: Index, mode: Mode) -> None:
    assert await index.texts('hotels "company rate"', mode=mode) == [PASSAGES[2]]
    assert await index.texts('"Company  RATE"', mode=mode) == [PASSAGES[2]]
    assert await index.texts('"rate company"', mode=mode) == []
    assert await index.texts('"hotel near"', mode=mode) == []
    both = await index.texts('"the proxy" "the connection"', mode=mode)
    assert both == [PASSAGES[4]]


@pytest.mark.parametrize("mode", ["hybrid", "vector", "keyword"])
async def test_passages_with_an_excluded_word_are_not_found(index: Index, mode: Mode) -> None:
    found = await index.texts("hotels policy -trains", mode=mode)
    assert PASSAGES[1] not in found
    assert PASSAGES[3] in found
    found = await index.texts('hotels -"company rate" -policies', mode=mode)
    assert not {PASSAGES[1], PASSAGES[2], PASSAGES[3]} & set(found)
    assert PASSAGES[4] not in await index.texts("proxy connection -ERR_CONN_RESET", mode=mode)


async def test_only_exclusions_leave_the_rest(index: Index) -> None:
    found = await index.texts("-hotels -travel", mode="hybrid")
    assert sorted(found) == sorted(PASSAGES[4:])
    assert await index.texts("-hotels", mode="keyword") == []


@pytest.mark.parametrize("mode", ["hybrid", "vector"])
async def test_phrases_hold_where_vectors_come_from_the_index(
    index: Index, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.search.vector.COMPARED_CHUNKS", 0)
    assert await index.texts('"company rate"', mode=mode) == [PASSAGES[2]]
    assert PASSAGES[2] not in await index.texts('hotels -"company rate"', mode=mode)


async def test_a_question_is_answered_though_its_phrase_is_nowhere(index: Index) -> None:
    result = await index.search('what does the "hotels company" cost?')
    assert len(result.hits) == len(PASSAGES)
    assert result.explanation is not None
    assert "waived" in result.explanation["query"]
    assert await index.texts('what is the "company rate"?') == [PASSAGES[2]]
    assert await index.texts('cost "hotels company"') == []


async def test_a_beginning_finds_all_words_that_begin_so(index: Index) -> None:
    assert await index.texts("config*", mode="keyword") == [PASSAGES[5]]
    found = await index.texts("CONN*", mode="keyword")
    assert sorted(found) == sorted([PASSAGES[4], PASSAGES[5]])
    assert await index.texts("conne*", mode="keyword") != []
    assert await index.texts("zepp*", mode="keyword") == []
    result = await index.search("CONN* proxy", explain=True)
    assert result.explanation is not None
    term = result.explanation["terms"]["CONN*"]
    assert term["passages"] == 2
    assert set(term["stands_for"]) == {"conn", "connect"}
    assert result.explanation["query"]["prefixes"] == ["CONN"]


async def test_a_beginning_stands_for_the_most_frequent_terms(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "EXPANSIONS", 1)
    result = await index.search("pol*", mode="keyword", explain=True)
    assert result.explanation is not None
    assert result.explanation["terms"]["pol*"]["stands_for"] == ["polici", "pol"]


async def test_phrases_and_filters_narrow_together(engine: AsyncEngine, settings: Settings) -> None:
    async with open_index(engine, settings) as index:
        sources = [
            Source(["the company rate of hotels"], metadata={"year": year}) for year in (2025, 2026)
        ]
        await index.fill([*sources, Source(["a rate"], metadata={"year": 2026})], "years")
        for mode in ("hybrid", "vector", "keyword"):
            hits = await index.texts('"company rate"', "years", mode=mode, filters={"year": 2026})
            assert hits == ["the company rate of hotels"]
        for mode in ("hybrid", "vector"):
            hits = await index.texts(
                'rate -"company rate"', "years", mode=mode, filters={"year": 2026}
            )
            assert hits == ["a rate"]


async def test_the_best_are_read_where_too_many_are_possible(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phrases, "CHECKED_PASSAGES", 1)
    result = await index.search('"company rate"', explain=True)
    assert result.explanation is not None
    note = result.explanation["query"]["phrases"]["company rate"]
    assert (note["read"], note["possible"]) == (1, 2)
    assert [hit.text for hit in result.hits] == [PASSAGES[2]]


async def test_an_explanation_says_how_the_query_was_understood(index: Index) -> None:
    result = await index.search('proxy "the connection" -error', explain=True)
    assert result.explanation is not None
    assert result.explanation["query"] == {
        "text": "proxy the connection",
        "phrases": {"the connection": {"passages": 1}},
        "excluded": {"error": {"passages": 1}},
    }
    assert list(result.hits) == []
    plain = await index.search("proxy", explain=True)
    assert plain.explanation is not None
    assert "query" not in plain.explanation


@pytest.mark.parametrize(
    ("phrase", "text", "holds"),
    [
        ("company rate", "a Company, rate!", True),
        ("company rate", "company rates", False),
        ("company rate", "accompany rate", False),
        ("err conn reset", "ERR_CONN_RESET", True),
        ("foo.bar()", "call foo.bar(x)", True),
        ("cafe society", "Café-Society", True),
        ("STRASSE", "die Straße", True),
        ("日本語", "これは日本語です", True),
        ("日本語 test", "日本語test", True),
        ("本 語", "日本 語", True),
        ("python入門", "Python 入門書", True),
        ("हिन्दी", "हिन्दी भाषा", True),
        ("हिन्द", "हिन्दी भाषा", False),
        ("wing's shape", "the wing’s shape", True),
    ],
)
def test_a_phrase_is_whole_words_side_by_side(phrase: str, text: str, holds: bool) -> None:
    assert (phrase_pattern(phrase).search(fold(text)) is not None) is holds


@pytest.mark.parametrize(
    ("query", "written"),
    [
        ("what does ERR_CONN_RESET mean", PASSAGES[4]),
        ("release 2.3.1", "the v2.3.1 release"),
        ("§14 on leave", "see § 14 for leave"),
        ("the USA office", "our office of the U.S.A. is closed"),
        (".NET runtime", "a runtime of .NET is there"),
    ],
)
async def test_a_passage_with_the_whole_identifier_stands_first(
    engine: AsyncEngine, settings: Settings, query: str, written: str
) -> None:
    near = [
        "a reset of the conn gives an err code",
        "release 2 of 3",
        "14 days of leave",
        "the office",
        "the net result of the runtime",
    ]
    async with open_index(engine, settings) as index:
        await index.fill([*near, written], "other")
        assert (await index.texts(query, "other", mode="keyword"))[0] == written
