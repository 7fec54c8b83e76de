"""The comparison of passages: what it counts, and that it runs."""

import json
from pathlib import Path

import pytest

from app.errors import InvalidInput
from evaluation.chunkers import TokenRuler, chonkie_recursive, fixed_windows, ours
from evaluation.chunking import (
    compare,
    comparison_record,
    comparison_tables,
    load_evidence,
    score,
)
from ingestion.types import Chunking
from tests.doubles.words import WordTokenizer
from tests.doubles.words_embedder import WordsEmbedder


class Embedder(WordsEmbedder):
    """Named as the model whose tokens the others count in."""

    name = "all-MiniLM-L6-v2"
    tokenizer = WordTokenizer()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    corpora = tmp_path / "corpora"
    corpora.mkdir()
    rows = ["question,references,corpus_id"]
    for corpus, topics in {"pets": ("cats", "dogs"), "plants": ("roses", "ferns")}.items():
        text = "\n\n".join(
            " ".join(f"Sentence {number} says a thing about {topic}." for number in range(60))
            for topic in topics
        )
        (corpora / f"{corpus}.md").write_text(text, "utf-8")
        for topic in topics:
            wanted = f"Sentence 7 says a thing about {topic}."
            start = text.index(wanted)
            references = [{"content": wanted, "start_index": start, "end_index": start + 38}]
            quoted = json.dumps(references).replace('"', '""')
            rows.append(f'What of {topic}?,"{quoted}",{corpus}')
    (tmp_path / "questions_df.csv").write_text("\n".join(rows) + "\n", "utf-8")
    return tmp_path


def test_tokens_of_a_span_are_those_it_touches() -> None:
    ruler = TokenRuler(WordTokenizer(), "one two, three")
    assert list(ruler.tokens(0, 14)) == [0, 1, 2, 3]
    assert list(ruler.tokens(2, 5)) == [0, 1]
    assert list(ruler.tokens(3, 4)) == []


def test_scores_count_a_repeated_token_once_as_found_and_twice_as_retrieved() -> None:
    evidence = [range(10, 20)]
    exact = score(evidence, [range(10, 20)], 0)
    assert (exact.recall, exact.precision, exact.iou) == (1, 1, 1)
    half = score(evidence, [range(15, 25)], 0)
    assert (half.recall, half.precision, half.iou) == (0.5, 0.5, 5 / 15)
    repeated = score(evidence, [range(10, 20), range(10, 20)], 0)
    assert (repeated.recall, repeated.precision, repeated.iou) == (1, 0.5, 0.5)
    elsewhere = score(evidence, [], 30)
    assert (elsewhere.recall, elsewhere.precision, elsewhere.iou) == (0, 0, 0)


def test_other_peoples_passages_are_slices_of_the_text() -> None:
    text = "\n\n".join(f"Paragraph {number}. It says a thing, or two." for number in range(60))
    for cut in (
        fixed_windows(WordTokenizer(), 40),
        chonkie_recursive("all-MiniLM-L6-v2", 40),
        ours(WordTokenizer(), Chunking(40)),
    ):
        passages = cut("Title", text)
        assert len(passages) > 5
        assert all(text[one.start : one.end].strip() in one.embedded for one in passages)
        assert "".join(text[one.start : one.end] for one in passages).replace(
            "\n", ""
        ) == text.replace("\n", "")


def test_a_comparison_measures_every_way_to_cut(folder: Path) -> None:
    corpora, questions = load_evidence(folder)
    assert [question.corpus for question in questions] == ["pets", "pets", "plants", "plants"]
    embedder = Embedder()
    told: list[str] = []
    found = compare(
        embedder, Chunking(60), corpora, questions, lambda step, _done, _total: told.append(step)
    )
    assert [one.method for one in found] == [
        "Footnote, 200",
        "Footnote, 60 (configured)",
        "fixed windows, 200",
        "chonkie recursive, 200",
    ]
    assert set(told) == {one.method for one in found}
    configured = found[1]
    assert configured.tokens_mean <= 60
    assert set(configured.corpora) == {"pets", "plants"}
    assert all(0 <= value.mean <= 1 for one in found for value in one.measures.values())
    assert all(value.mean == 0 for value in found[0].ahead.values())
    record = comparison_record(found)
    assert json.loads(json.dumps(record))[1]["passages"] == "Footnote, 60 (configured)"
    assert [table.row_count for table in comparison_tables(found)] == [4, 8]


def test_a_limit_takes_so_many_questions_of_each_corpus(folder: Path) -> None:
    corpora, questions = load_evidence(folder, limit=1)
    assert [question.text for question in questions] == ["What of cats?", "What of roses?"]
    assert set(corpora) == {"pets", "plants"}


def test_a_folder_that_is_no_such_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_evidence(tmp_path)
    (tmp_path / "questions_df.csv").write_text("question,references\nWhy?,[]\n")
    with pytest.raises(InvalidInput, match="malformed"):
        load_evidence(tmp_path)
    (tmp_path / "questions_df.csv").write_text("question,references,corpus_id\n")
    with pytest.raises(InvalidInput, match="no questions"):
        load_evidence(tmp_path)
