"""Markers and claims, read from a stream that may be cut anywhere."""

import re
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.answering.citations import Claim, Draft, MarkerReader, without_markers

SOURCES_COUNT = 4


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[first:last] for first, last in pairwise(places)]


def shown(text: str, cuts: list[int] | None = None) -> str:
    reader = MarkerReader(SOURCES_COUNT)
    parts = [reader.feed(piece) for piece in pieces(text, cuts or [])]
    return "".join(parts) + reader.finish()


def claims(text: str, cuts: list[int] | None = None) -> list[Claim]:
    draft = Draft(SOURCES_COUNT)
    found = [claim for piece in pieces(text, cuts or []) for claim in draft.add(piece)[1]]
    return found + draft.finish()[1]


MARKED = [
    ("Water boils [1].", "Water boils [1]."),
    ("Water boils.[1][2]", "Water boils.[1][2]"),
    ("Both say so [1, 2].", "Both say so [1][2]."),
    ("All of them [1,2;3].", "All of them [1][2][3]."),
    ("Both [1 and 3].", "Both [1][3]."),
    ("A range [2-4].", "A range [2][3][4]."),
    ("A range [1–2].", "A range [1][2]."),
    ("By name [Source 2].", "By name [2]."),
    ("By names [Sources 1, 2].", "By names [1][2]."),
    ("[^1] in front.", "[1] in front."),
    ("Another script 【1】.", "Another script [1]."),
    ("With a place 【2†L3-L5】.", "With a place [2]."),
    ("Twice [1][1] and [1, 1].", "Twice [1][1] and [1]."),
]
INVENTED = [
    ("Invented [9].", "Invented."),
    ("Invented [0].", "Invented."),
    ("Half [1, 9].", "Half [1]."),
    ("Half [1][9].", "Half [1]."),
    ("A wide range [3-9].", "A wide range [3][4]."),
    ("A silly range [1-999].", "A silly range [1]."),
    ("In [2024] the court held.", "In (2024) the court held."),
    ("[9] begins it.", " begins it."),
    ("One [[9]7] in another.", "One [ 7] in another."),
    ("One [1[9]2] in another.", "One [1 2] in another."),
]
UNTOUCHED = [
    "An [aside] stays, and [so does this].",
    "A [link](https://example.com/1) stays.",
    "Code `a[9]` stays.",
    "Code ``a`[9]`` stays.",
    "```python\nprint(a[9])\n```\nDone.",
    "````\n```\nx[9]\n```\n````\nDone.",
    "An open [bracket",
    "An open [1",
    "Nothing at all.",
    "",
]


@pytest.mark.parametrize(("text", "expected"), MARKED + INVENTED)
def test_markers_become_canonical_and_invented_ones_go(text: str, expected: str) -> None:
    assert shown(text) == expected


@pytest.mark.parametrize("text", UNTOUCHED)
def test_what_is_no_marker_stays(text: str) -> None:
    assert shown(text) == text


def test_a_stray_tick_does_not_hide_the_markers_after_its_line() -> None:
    assert shown("A stray ` tick [9].\nThen [9] this.") == "A stray ` tick [9].\nThen this."


@pytest.mark.parametrize(("text", "expected"), MARKED + INVENTED + [(t, t) for t in UNTOUCHED])
def test_it_does_not_matter_where_the_tokens_are_cut(text: str, expected: str) -> None:
    random = Random(5)
    every_character = list(range(len(text)))
    assert shown(text, every_character) == expected
    for _ in range(20):
        assert shown(text, [random.randrange(100) for _ in range(4)]) == expected


@given(
    st.text(alphabet="ab.\n `[]【】0123459,- ^†S", max_size=60),
    st.lists(st.integers(0, 60), max_size=8),
)
def test_whatever_comes_only_known_sources_are_cited(text: str, cuts: list[int]) -> None:
    draft = Draft(SOURCES_COUNT)
    found = [draft.add(piece) for piece in pieces(text, cuts)] + [draft.finish()]
    assert "".join(part for part, _ in found) == draft.text
    for _, complete in found:
        for claim in complete:
            assert set(claim.markers) <= set(range(1, SOURCES_COUNT + 1))


@given(st.text(alphabet="a \n[]0123459,-", max_size=60), st.lists(st.integers(0, 60), max_size=8))
def test_whatever_comes_no_other_number_is_shown_as_a_marker(text: str, cuts: list[int]) -> None:
    numbers = {int(number) for number in re.findall(r"\[(\d{1,3})\]", shown(text, cuts))}
    assert numbers <= set(range(1, SOURCES_COUNT + 1))


@given(st.lists(st.integers(0, 80), max_size=10))
def test_cuts_change_neither_text_nor_claims(cuts: list[int]) -> None:
    text = "Dr. Smith paid $3.50 [1]. It was v1.2 [2, 9]! See `a[1]` there. Done [3]"
    assert shown(text, cuts) == shown(text)
    assert claims(text, cuts) == claims(text)


def test_text_is_shown_as_early_as_it_can_be() -> None:
    reader = MarkerReader(SOURCES_COUNT)
    assert reader.feed("Water") == "Water"
    assert reader.feed(" boils ") == " boils"
    assert reader.feed("[") == ""
    assert reader.feed("1") == ""
    assert reader.feed("]. Then") == " [1]. Then"


def test_an_endless_bracket_is_not_held_back_for_ever() -> None:
    reader = MarkerReader(SOURCES_COUNT)
    assert len(reader.feed("[" + "1, " * 100)) > 200


def test_each_sentence_keeps_its_own_markers() -> None:
    assert claims("Cats purr a lot [1]. Dogs bark at night.[2][3] Fish swim.") == [
        Claim("Cats purr a lot.", (1,), is_marked=True),
        Claim("Dogs bark at night.", (2, 3), is_marked=True),
        Claim("Fish swim.", (2, 3), is_marked=False),
    ]


def test_a_claim_is_complete_as_soon_as_the_next_sentence_begins() -> None:
    draft = Draft(SOURCES_COUNT)
    assert draft.add("Cats purr a lot.")[1] == []
    assert draft.add(" [1]")[1] == []
    assert draft.add(" Dogs")[1] == [Claim("Cats purr a lot.", (1,), is_marked=True)]


def test_sentences_without_markers_borrow_the_next_ones() -> None:
    assert claims("Cats purr a lot. Dogs bark at night [2].") == [
        Claim("Cats purr a lot.", (2,), is_marked=False),
        Claim("Dogs bark at night.", (2,), is_marked=True),
    ]


def test_an_answer_without_markers_cites_nothing() -> None:
    assert claims("Cats purr a lot.") == [Claim("Cats purr a lot.", (), is_marked=False)]


def test_what_only_opens_belongs_to_what_follows() -> None:
    assert claims("Yes [1]. Cats purr a lot [2].") == [
        Claim("Yes. Cats purr a lot.", (1, 2), is_marked=True)
    ]
    assert claims("To install it:\n\n```\npip install cats\n```\n\nThen feed the cat [1].") == [
        Claim("To install it: ```\npip install cats\n```", (1,), is_marked=False),
        Claim("Then feed the cat.", (1,), is_marked=True),
    ]
    assert claims("Yes [1].") == [Claim("Yes.", (1,), is_marked=True)]


def test_headings_claim_nothing_and_items_are_claims() -> None:
    assert claims("## Pets\n\n- Cats purr a lot [1]\n- Dogs bark at night [2]\n") == [
        Claim("Cats purr a lot", (1,), is_marked=True),
        Claim("Dogs bark at night", (2,), is_marked=True),
    ]


def test_brackets_in_code_cite_nothing() -> None:
    assert claims("Read `rows[2]` first [1].\n\n```\nrows[3]\n```") == [
        Claim("Read `rows[2]` first.", (1,), is_marked=True),
        Claim("```\nrows[3]\n```", (1,), is_marked=False),
    ]
    assert claims("A stray ` tick\nin the text [2].")[-1].markers == (2,)


def test_leading_space_of_an_answer_is_dropped() -> None:
    draft = Draft(SOURCES_COUNT)
    assert draft.add("\n\n ")[0] == ""
    assert draft.add(" Cats")[0] == "Cats"


def test_markers_leave_a_text_together_with_their_space() -> None:
    assert without_markers("Cats purr [1]. Dogs bark.[2][3] `x`") == "Cats purr. Dogs bark. `x`"
