"""Strategies and overlap: what each promises, whatever the text."""

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingestion.chunking import split
from ingestion.types import Chunk, Chunking, ChunkingStrategy, Page, ParsedDocument, embedded_text
from tests.doubles.words import WordTokenizer

TOKENIZER = WordTokenizer()

_PIECES = st.sampled_from(
    ["# Title", "## Part", "a short paragraph", "- item\n  - nested", "```\nx = 1\n```",
     "| a | b |\n| - | - |\n" + "| 1 | 2 |\n" * 60, "word " * 260, "Long one. " * 200, "x" * 900,
     "漢字かな。" * 120, "Table 1: Leave", "    indented", "", " "]
)  # fmt: skip
_TEXTS = st.lists(st.one_of(_PIECES, st.text(max_size=40)), max_size=15).map("\n\n".join)


def words(count: int, word: str = "tree") -> str:
    return " ".join(f"{word}{number}" for number in range(count))


def sentences(count: int, topic: str) -> str:
    return " ".join(f"Here is number {number} about {topic}." for number in range(count))


def chunks_of(text: str, chunking: Chunking, pages: tuple[Page, ...] = ()) -> list[Chunk]:
    parsed = ParsedDocument(text=text, title="Handbook", media_type="text/markdown", pages=pages)
    return split(parsed, TOKENIZER, chunking)


def weight(text: str) -> int:
    return len(TOKENIZER.spans([text])[0])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    text=_TEXTS,
    strategy=st.sampled_from(["structure", "recursive", "fixed"]),
    overlap=st.sampled_from([0, 20, 50]),
)
def test_every_strategy_keeps_all_of_the_text_in_exact_passages_that_fit(
    text: str, strategy: ChunkingStrategy, overlap: int
) -> None:
    chunks = chunks_of(text, Chunking(100, overlap, strategy))
    covered = 0
    for chunk in chunks:
        assert text[chunk.start : chunk.end] == chunk.text == chunk.text.strip() != ""
        assert not text[covered : chunk.start].strip(), "lost between two chunks"
        assert weight(embedded_text("Handbook", chunk)) <= 125
        covered = max(covered, chunk.end)
    assert not text[covered:].strip(), "lost after the last chunk"
    for before, after in pairwise(chunks):
        assert before.start < after.start
        assert before.end < after.end
        assert overlap or before.end <= after.start
        assert weight(text[after.start : before.end]) <= overlap


def test_an_overlap_begins_with_a_sentence() -> None:
    text = sentences(120, "cats")
    chunks = chunks_of(text, Chunking(100, 20))
    assert len(chunks) > 5
    for before, after in pairwise(chunks):
        repeated = text[after.start : before.end]
        assert repeated.startswith("Here is number")
        assert 0 < weight(repeated) <= 20


def test_a_sentence_too_long_to_repeat_is_repeated_in_part() -> None:
    text = words(600)
    chunks = chunks_of(text, Chunking(100, 20))
    assert len(chunks) > 5
    for before, after in pairwise(chunks):
        assert 10 <= weight(text[after.start : before.end]) <= 20


def test_nothing_is_repeated_across_a_heading_or_a_page() -> None:
    text = f"# Cats\n\n{sentences(30, 'cats')}\n\n# Dogs\n\n{sentences(30, 'dogs')}"
    chunks = chunks_of(text, Chunking(100, 30))
    assert [chunk.heading for chunk in chunks if chunk.text.startswith("#")] == [
        ("Cats",),
        ("Dogs",),
    ]
    assert not any("cats" in chunk.text and "dogs" in chunk.text for chunk in chunks)
    cats, dogs = sentences(30, "cats"), sentences(30, "dogs")
    pages = (Page(1, 0, len(cats)), Page(2, len(cats) + 2, len(cats) + 2 + len(dogs)))
    paged = chunks_of(f"{cats}\n\n{dogs}", Chunking(100, 30), pages)
    assert not any("cats" in chunk.text and "dogs" in chunk.text for chunk in paged)


def test_what_follows_a_table_does_not_repeat_rows_without_their_header() -> None:
    rows = "\n".join(f"| Country {number} | {number} days |" for number in range(60))
    text = f"| Country | Leave |\n| --- | --- |\n{rows}\n\n{sentences(30, 'leave')}"
    chunks = chunks_of(text, Chunking(100, 40))
    prose = [chunk for chunk in chunks if chunk.start > text.index("Here")]
    assert prose
    assert not any("Country" in chunk.text for chunk in prose)
    split_rows = [chunk for chunk in chunks if "Country 3" in chunk.text and chunk.start]
    assert {chunk.context for chunk in split_rows} == {"| Country | Leave |"}


def test_fixed_windows_are_as_long_as_they_may_be() -> None:
    chunks = chunks_of(f"# A heading\n\n{words(500)}", Chunking(100, 0, "fixed"))
    assert [chunk.tokens for chunk in chunks[:-1]] == [100] * (len(chunks) - 1)
    assert {chunk.heading for chunk in chunks} == {()}


def test_recursive_cuts_at_paragraphs_then_at_sentences_and_knows_no_headings() -> None:
    text = f"# One\n\n{words(70)}\n\n# Two\n\n{words(70)}\n\n{sentences(40, 'cats')}"
    chunks = chunks_of(text, Chunking(100, 0, "recursive"))
    assert {chunk.heading for chunk in chunks} == {()}
    assert chunks[0].text == f"# One\n\n{words(70)}"
    assert all(chunk.text.endswith(".") for chunk in chunks[2:])


@pytest.mark.parametrize("above", [True, False])
def test_a_split_table_repeats_its_caption_with_its_header(*, above: bool) -> None:
    rows = "\n".join(f"| Country {number} | {number} days |" for number in range(80))
    table = f"| Country | Leave |\n| --- | --- |\n{rows}"
    caption = "**Table 3:** Days of leave"
    text = f"{caption}\n\n{table}\n\nEnd." if above else f"{table}\n{caption}\n\nEnd."
    chunks = chunks_of(text, Chunking(100))
    assert len(chunks) > 3
    assert {chunk.context for chunk in chunks[1:-1]} == {f"{caption}\n| Country | Leave |"}


def test_a_header_that_long_headings_leave_no_room_for_is_not_repeated() -> None:
    headings = "\n\n".join(f"{'#' * n} Heading {n} {words(20, 'h')}" for n in range(1, 5))
    columns = " | ".join(f"c{number}" for number in range(14))
    rows = "\n".join([f"| {columns.replace('c', '')} |"] * 40)
    text = f"{headings}\n\n| {columns} |\n|{' --- |' * 14}\n{rows}"
    chunks = chunks_of(text, Chunking(100))
    assert {chunk.context for chunk in chunks} == {""}
    assert all(weight(embedded_text("Handbook", chunk)) <= 125 for chunk in chunks)
    assert text.endswith(chunks[-1].text)


def test_a_caption_belongs_to_the_nearer_of_two_tables() -> None:
    def table(name: str) -> str:
        return f"| {name} |  |\n| --- | --- |\n" + "\n".join(f"| {name} | {n} |" for n in range(60))

    text = f"{table('One')}\nTable 1: first\n\n{table('Two')}\nTable 2: second"
    contexts = {chunk.context for chunk in chunks_of(text, Chunking(100))}
    assert contexts - {""} == {"Table 1: first\n| One | |", "Table 2: second\n| Two | |"}


def test_prose_about_a_table_is_no_caption() -> None:
    rows = "\n".join(f"| Country {number} | {number} days |" for number in range(80))
    text = f"Table 3 shows the days.\n\n| Country | Leave |\n| --- | --- |\n{rows}"
    contexts = {chunk.context for chunk in chunks_of(text, Chunking(100))}
    assert contexts - {""} == {"| Country | Leave |"}
