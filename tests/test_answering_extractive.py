"""Which sentences answer without a model, and how they are put together."""

from uuid import uuid4

from app.answering.extractive import (
    MAX_CANDIDATES,
    MAX_EMBEDDED,
    MAX_SENTENCE_CHARS,
    Candidate,
    choose,
    find_candidates,
    shortlist,
    written,
)
from app.search.base import Hit


def hit(text: str, title: str = "Guide", heading: tuple[str, ...] = ()) -> Hit:
    return Hit(
        chunk_id=1,
        document_id=uuid4(),
        collection="default",
        title=title,
        uri="",
        text=text,
        heading=heading,
        page=None,
        start=0,
        end=len(text),
        score=1.0,
        content_hash=b"",
        similarity=0.5,
    )


def readings(text: str) -> list[str]:
    return [candidate.piece.reading for candidate in find_candidates([hit(text)])]


def quotes(text: str) -> list[str]:
    return [text[each.piece.start : each.piece.end] for each in find_candidates([hit(text)])]


def test_headings_questions_and_fragments_are_no_answers() -> None:
    text = "# Install\n\nHow is it installed?\n\nSee\n\nIt is installed with one command.\n\nfig 3"
    assert readings(text) == ["It is installed with one command."]


def test_headings_and_questions_say_what_follows_them() -> None:
    [candidate] = find_candidates([hit("How long is it valid?\n\nIt is valid for ninety days.")])
    assert candidate.embedded_text == "How long is it valid?: It is valid for ninety days."
    [candidate] = find_candidates(
        [hit("Valid for ninety days, then it ends.", heading=("A", "Keys"))]
    )
    assert candidate.embedded_text.startswith("Keys: ")


def test_a_sentence_that_points_back_brings_the_one_before() -> None:
    text = "The token is valid for a day. It can be renewed once.\n\nThis stands alone in its paragraph."
    assert readings(text) == [
        "The token is valid for a day.",
        "The token is valid for a day. It can be renewed once.",
        "This stands alone in its paragraph.",
    ]
    assert [each.piece.leans_back for each in find_candidates([hit(text)])] == [False, False, True]
    assert quotes(text)[1] == "The token is valid for a day. It can be renewed once."


def test_a_lead_brings_its_list_and_its_code() -> None:
    text = (
        "You need these:\n\n- **Python** 3.11\n- PostgreSQL. Any will do.\n\n"
        "Then run it:\n\n```\nmake demo\n```\n\nWhat comes last:\n\nNothing more is needed."
    )
    assert readings(text) == [
        "You need these:\n- Python 3.11\n- PostgreSQL. Any will do.",
        "Then run it:\n```\nmake demo\n```",
        "Nothing more is needed.",
    ]
    assert quotes(text)[0] == text[: text.index("\n\nThen")]


def test_code_comes_with_the_sentence_before_it() -> None:
    text = "The service is started with make.\n\n```\nmake demo\n```"
    assert readings(text)[-1] == "The service is started with make.\n```\nmake demo\n```"
    assert readings("```\nmake demo\n```") == ["```\nmake demo\n```"]


def test_rows_read_with_their_header() -> None:
    text = "| Plan | Price |\n|------|-------|\n| Basic | 5 euros |\n| Pro | 9 euros |"
    assert readings(text) == ["Plan: Basic; Price: 5 euros", "Plan: Pro; Price: 9 euros"]
    assert quotes(text)[1] == "| Pro | 9 euros |"


def test_the_number_and_length_of_candidates_are_bounded() -> None:
    many = [hit("This is a whole sentence. " * 30) for _ in range(8)]
    assert len(find_candidates(many)) == MAX_CANDIDATES
    endless = "word " * MAX_SENTENCE_CHARS
    assert find_candidates([hit(f"{endless}. This is a whole sentence.")])[0].piece.text == (
        "This is a whole sentence."
    )


def test_fragments_serve_when_there_is_nothing_else() -> None:
    assert readings("Opening hours\n\n9 to 5") == ["Opening hours", "9 to 5"]
    assert readings("") == []


def chosen(question_terms: list[str], *texts_and_similarities: tuple[str, float]) -> list[str]:
    hits = [hit(text) for text, _ in texts_and_similarities]
    candidates = [each for place, one in enumerate(hits) for each in moved(one, place)]
    similarities = [similarity for _, similarity in texts_and_similarities]
    return [each.piece.text for each in choose(question_terms, candidates, similarities)]


def moved(one: Hit, place: int) -> list[Candidate]:
    [found] = find_candidates([one])
    return [Candidate(place, found.piece, found.embedded_text, found.terms)]


def test_similar_sentences_are_chosen_and_poor_ones_left_out() -> None:
    assert chosen(
        [],
        ("Travel is approved by the lead.", 0.8),
        ("Meals are paid up to a limit.", 0.7),
        ("The office is closed on Sunday.", 0.2),
    ) == ["Travel is approved by the lead.", "Meals are paid up to a limit."]


def test_a_rare_word_of_the_question_weighs_more_than_likeness() -> None:
    texts = (
        ("Travel needs the approval of somebody.", 0.50),
        ("Travel to Ghana needs a visa.", 0.45),
    )
    assert chosen(["travel", "ghana"], *texts)[0] == "Travel to Ghana needs a visa."


def test_what_says_the_same_is_said_once() -> None:
    assert chosen(
        [],
        ("Travel is approved by the team lead.", 0.8),
        ("The team lead approves travel.", 0.79),
        ("Meals are paid up to a limit.", 0.7),
    ) == ["Travel is approved by the team lead.", "Meals are paid up to a limit."]


def test_sentences_of_one_passage_keep_their_order() -> None:
    [*candidates] = find_candidates(
        [hit("Meals are paid up to a limit. Travel is booked by the lead.")]
    )
    ordered = choose([], candidates, [0.7, 0.8])
    assert [each.piece.start for each in ordered] == sorted(each.piece.start for each in ordered)
    assert len(ordered) == 2


def test_every_piece_is_followed_by_its_marker() -> None:
    plain, listed = find_candidates(
        [hit("Travel is booked by the lead.\n\nYou need these:\n\n- Python 3.11\n- Patience")]
    )
    text = written(plain.piece, 1, after="")
    assert text == "Travel is booked by the lead. [1]"
    assert written(plain.piece, 2, after=text) == " Travel is booked by the lead. [2]"
    block = written(listed.piece, 3, after=text)
    assert block == "\n\nYou need these: [3]\n\n- Python 3.11\n- Patience"
    assert written(plain.piece, 1, after=text + block).startswith("\n\n")


def test_only_the_most_promising_candidates_are_embedded() -> None:
    lines = [f"Paragraph number {number} is about nothing." for number in range(40)]
    lines[30] = "Travel to Ghana needs a visa."
    candidates = find_candidates([hit("\n\n".join(lines))])
    kept = shortlist(["ghana"], candidates)
    assert len(kept) == MAX_EMBEDDED
    assert "Travel to Ghana needs a visa." in [each.piece.text for each in kept]
    assert [each.piece.start for each in kept] == sorted(each.piece.start for each in kept)
