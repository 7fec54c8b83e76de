"""Questions about one's own documents: how files are read, and what meets an expectation."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.errors import InvalidInput
from evaluation.judging import GoldenJudge, holds, normalised
from evaluation.questions import load_golden_set

DOCUMENTS = [
    {"id": "1", "uri": "file:///docs/policies/travel.md", "title": "Travel policy"},
    {"id": "2", "uri": "file:///docs/expenses.md", "title": "Expenses"},
    {"id": "3", "uri": "file:///docs/old/expenses.md", "title": "Expenses of old"},
]


def hit(document: int, text: str = "…", chunk_id: int = 1) -> dict[str, Any]:
    uri = DOCUMENTS[document - 1]["uri"]
    return {"document_id": str(document), "uri": uri, "text": text, "chunk_id": chunk_id}


def write(folder: Path, content: str, name: str = "golden.csv") -> Path:
    path = folder / name
    path.write_text(content, "utf-8")
    return path


def judge_of(path: Path) -> GoldenJudge:
    golden = load_golden_set(path)
    return GoldenJudge(golden, {one.id: one.text for one in golden.questions}, DOCUMENTS)


# --- the file -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "question,document\nWho approves?,travel.md\n",
        "\ufeffQuestion;Expected Document;Comment\nWho approves?;travel.md;ok\n",
        "id\tQUERY\tfile-name\n\tWho  approves?\ttravel.md\n",
        "\n\nquestion,document,keep\nWho approves?,travel.md,yes\nWho pays?,expenses.md,No\n",
    ],
)
def test_headers_are_forgiving(tmp_path: Path, content: str) -> None:
    golden = load_golden_set(write(tmp_path, content))
    [question] = golden.questions
    assert (question.text, golden.name) == ("Who approves?", "golden")
    assert [one.document for one in question.expected] == ["travel.md"]
    assert golden.rejected == content.count(",No")


def test_json_lines_and_lists_are_read(tmp_path: Path) -> None:
    rows = [
        {"question": "a?", "document": ["x", "y"], "grade": 2},
        {"query": "b?", "quote": "words", "uri": "x", "comment": None},
    ]
    for content in ("\n".join(map(json.dumps, rows)), json.dumps(rows, indent=1)):
        golden = load_golden_set(write(tmp_path, content, "golden.jsonl"))
        first, second = golden.questions
        assert [(one.document, one.grade) for one in first.expected] == [("x", 2), ("y", 2)]
        assert [(one.document, one.quote) for one in second.expected] == [("x", "words")]


def test_lines_of_one_question_are_one_question(tmp_path: Path) -> None:
    content = (
        "id,question,quote,grade\n1,a?,one,2\n1,a?,two,\n2,b?,three,1\n2,b?,four,0\n,c?,five,\n"
    )
    golden = load_golden_set(write(tmp_path, content))
    assert {one.id: [each.quote for each in one.expected] for one in golden.questions} == {
        "1": ["one", "two"],
        "2": ["three"],
        "c?": ["five"],
    }


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("query_text,doc\nx,y\n", "line 1: no column is named question"),
        ("question,document\n,travel.md\n", "line 2: there is no question"),
        ('question,quote\n"a\nb",q\n\nc,\n', "line 5: it does not say what is expected"),
        ("question,quote\na,b,c\n", "line 2: it has 3 cells, and the header 2"),
        ("id,question,quote\n1,a,x\n1,b,y\n", "line 3: id '1' already stands"),
        ("question,quote,grade\na,b,good\n", "line 2: grade 'good' is not a number"),
        ("question,quote,grade\na,b,-1\n", "line 2: a grade is 1 or more"),
        ('question,quote\na,"b\n', "line 2"),
        ("question,quote,keep\na,b,no\n", "holds no questions; 1 are marked"),
        ("", "holds no questions"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, content: str, complaint: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        load_golden_set(write(tmp_path, content))
    assert complaint in refused.value.detail
    assert "question" in refused.value.hint


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"question": "a", "quote": "b"}\n{', "line 2: it is not JSON"),
        ('\n["a"]', "line 1: it is not an object"),
        ('{"quote": "b"}', "line 1: no column is named question"),
        ('{"question": "a", "document": ["x", "y"], "quote": "b"}', "of which of the documents"),
    ],
)
def test_what_is_wrong_in_json_is_named_too(tmp_path: Path, content: str, complaint: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        load_golden_set(write(tmp_path, content, "golden.jsonl"))
    assert complaint in refused.value.detail


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "golden.csv").write_bytes(b"question,quote\n\xff,b")
    with pytest.raises(InvalidInput, match="not UTF-8"):
        load_golden_set(tmp_path / "golden.csv")
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_golden_set(tmp_path)


# --- what meets an expectation --------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "file:///docs/policies/travel.md",
        "travel policy",
        "Travel.md",
        "travel",
        "policies/travel.md",
        "./docs/policies/travel.md",
    ],
)
def test_documents_go_by_many_names(tmp_path: Path, name: str) -> None:
    judge = judge_of(write(tmp_path, f"question,document\nq?,{name}\n"))
    assert judge.is_relevant("q?", hit(1))
    assert not judge.is_relevant("q?", hit(2))


def test_a_name_of_several_documents_means_any_of_them(tmp_path: Path) -> None:
    judge = judge_of(write(tmp_path, "question,document\nq?,expenses.md\n"))
    assert judge.units("q?", [hit(1), hit(3), hit(2)]) == [DOCUMENTS[0]["uri"], "expected-1"]
    assert judge.judgements == {"q?": {"expected-1": 1}}


def test_a_document_that_is_not_there_is_named_with_its_line(tmp_path: Path) -> None:
    rows = "".join(f"q{number}?,missing{number}.md\n" for number in range(7))
    with pytest.raises(InvalidInput, match=r"line 2: missing0\.md; .*; and 2 more") as refused:
        judge_of(write(tmp_path, f"question,document\n{rows}"))
    assert "keep=no" in refused.value.hint


def test_quotes_are_judged_by_passage(tmp_path: Path) -> None:
    rows = 'q?,travel,"The *manager* approves,\n trips"\nq?,,Receipts are kept\n'
    judge = judge_of(write(tmp_path, f"question,document,quote\n{rows}"))
    quoted = "the manager   approves trips. Or not."
    hits = [
        hit(2, quoted, 5),  # the words, in another document
        hit(1, "something else", 6),
        hit(1, quoted, 7),
        hit(1, f"again: {quoted}", 8),  # met already: no mistake, and no gain
        hit(3, "receipts are kept", 9),
    ]
    assert judge.units("q?", hits) == [
        "file:///docs/expenses.md#5",
        "file:///docs/policies/travel.md#6",
        "expected-1",
        "expected-2",
    ]
    assert judge.expected("q?")[1] == "“Receipts are kept”"


def test_what_is_expected_is_a_document_or_else_a_quote(tmp_path: Path) -> None:
    judge = judge_of(write(tmp_path, "question,expected\na?,travel.md\nb?,receipts are kept\n"))
    assert judge.is_relevant("a?", hit(1))
    assert not judge.is_relevant("b?", hit(1))
    assert judge.is_relevant("b?", hit(2, "All receipts are kept."))


@pytest.mark.parametrize(
    ("passage", "is_held"),
    [
        ("before one two three four after", True),
        ("before one two", True),  # the text was cut in the midst of the quote
        ("three four after", True),
        ("two three", True),
        ("before one", False),
        ("one two after", False),  # it goes on otherwise
        ("one x two three four", False),  # not cut there
        ("someone two three four", False),
        ("someone two", False),
        ("", False),
    ],
)
def test_half_a_quote_counts_where_the_passage_ends(passage: str, *, is_held: bool) -> None:
    assert holds(passage, "one two three four") == is_held


def test_one_word_is_held_whole_or_not_at_all() -> None:
    assert holds("the err_conn reset", "err_conn")
    assert not holds("the err_connection", "err_conn")
    assert normalised("**Trips** — are\n_approved_!") == "trips are approved"
