"""After an edit the passages are those of before, but for the ones beside it."""

import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from ingestion.chunking import split
from ingestion.types import Chunking, Markup, ParsedDocument, embedded_text
from tests.doubles.words import WordTokenizer

CHUNK_TOKENS = 200
NEW_PASSAGES_MAX = 3

TOKENIZER = WordTokenizer()
VOCABULARY = [f"word{number}" for number in range(2000)]

Paragraphs = list[str]


def sentence(draw: random.Random) -> str:
    return " ".join(draw.choices(VOCABULARY, k=draw.randint(5, 20))).capitalize() + "."


def paragraph(draw: random.Random) -> str:
    return " ".join(sentence(draw) for _ in range(draw.randint(1, 7)))


def book(seed: int, count: int, *, headings: bool) -> Paragraphs:
    draw = random.Random(seed)
    paragraphs: Paragraphs = []
    for index in range(count):
        if headings and index % 8 == 0:
            paragraphs.append(f"## Part {index}")
        paragraphs.append(paragraph(draw))
    return paragraphs


def passages(paragraphs: Paragraphs, overlap: int = 0, markup: Markup = "markdown") -> list[str]:
    text = "\n\n".join(paragraphs)
    parsed = ParsedDocument(text=text, title="Book", media_type="text/plain", markup=markup)
    chunks = split(parsed, TOKENIZER, Chunking(CHUNK_TOKENS, overlap))
    return [embedded_text("Book", chunk) for chunk in chunks]


def changed(paragraphs: Paragraphs, at: int, _draw: random.Random) -> Paragraphs:
    words = paragraphs[at].split(" ")
    words[len(words) // 2] = "edited"
    return [*paragraphs[:at], " ".join(words), *paragraphs[at + 1 :]]


def rewritten(paragraphs: Paragraphs, at: int, draw: random.Random) -> Paragraphs:
    return [*paragraphs[:at], paragraph(draw), *paragraphs[at + 1 :]]


def inserted(paragraphs: Paragraphs, at: int, draw: random.Random) -> Paragraphs:
    return [*paragraphs[:at], paragraph(draw), *paragraphs[at:]]


def deleted(paragraphs: Paragraphs, at: int, _draw: random.Random) -> Paragraphs:
    return [*paragraphs[:at], *paragraphs[at + 1 :]]


EDITS = [changed, rewritten, inserted, deleted]


def new_passages(
    paragraphs: Paragraphs, edit: Callable[[Paragraphs, int, random.Random], Paragraphs]
) -> Iterator[int]:
    """How many passages have to be embedded after an edit, for edits all through the text."""
    known = set(passages(paragraphs))
    for at in range(len(paragraphs)):
        if not paragraphs[at].startswith("#"):
            edited = edit(paragraphs, at, random.Random(at))
            yield len(set(passages(edited)) - known)


@pytest.mark.parametrize("headings", [False, True])
@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_changes_three_passages_at_most_nearly_everywhere(
    edit: Callable[[Paragraphs, int, random.Random], Paragraphs], *, headings: bool
) -> None:
    counts: Counter[int] = Counter()
    for seed in range(2):
        counts.update(new_passages(book(seed, 60, headings=headings), edit))
    within = sum(count for new, count in counts.items() if new <= NEW_PASSAGES_MAX)
    assert within >= 0.98 * counts.total()
    assert max(counts) <= NEW_PASSAGES_MAX + 1
    assert sum(new * count for new, count in counts.items()) <= 1.7 * counts.total()


@pytest.mark.parametrize("edit", EDITS)
def test_it_does_not_matter_how_long_the_text_is(
    edit: Callable[[Paragraphs, int, random.Random], Paragraphs],
) -> None:
    paragraphs = book(3, 2400, headings=False)  # about 500 pages
    known = set(passages(paragraphs))
    assert len(known) > 700
    for at in (0, 1200, len(paragraphs) - 1):
        edited = edit(paragraphs, at, random.Random(at))
        assert len(set(passages(edited)) - known) <= NEW_PASSAGES_MAX


def test_a_single_endless_paragraph_is_no_different() -> None:
    draw = random.Random(5)
    sentences = [sentence(draw) for _ in range(600)]
    known = set(passages([" ".join(sentences)]))
    assert len(known) > 30
    for at in range(0, 600, 50):
        edited = [*sentences[:at], sentence(draw), *sentences[at:]]
        assert len(set(passages([" ".join(edited)])) - known) <= NEW_PASSAGES_MAX


def test_an_overlap_takes_one_passage_more_along() -> None:
    paragraphs = book(7, 60, headings=False)
    known = set(passages(paragraphs, overlap=30))
    for at in range(0, 60, 5):
        edited = changed(paragraphs, at, random.Random(at))
        assert len(set(passages(edited, overlap=30)) - known) <= NEW_PASSAGES_MAX + 1
