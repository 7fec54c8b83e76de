"""Which wordings may share an answer, and when they cease to."""

from typing import Any

import pytest

from app.cache.agreement import Wording, disagreement


def told_apart_by(one: str, other: str) -> str | None:
    first, second = Wording(one), Wording(other)
    found = disagreement(first, second)
    assert disagreement(second, first) == found, "it depends on which comes first"
    return found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Who approves travel?", "Who approves the travels?"),
        ("How do I reset my password?", "How can I reset my password"),
        ("What is the best way to reset my password?", "How do I reset my password?"),
        ("Please tell me, who approves travel?", "Who approves travel?"),
        ("Can you tell me who approves travel?", "I want to know who approves travel"),
        ("What's the notice period?", "what is the notice period?"),
        ("Which port does it listen on?", "What port does it listen on?"),
        ("Why can't I log in?", "Why cannot I log in?"),
        ("Who gets 1,000 euros?", "Who gets 1000 euros?"),
        ("Who gets twenty five days?", "Who gets 25 days?"),
        ("Who gets two hundred thousand?", "Who gets 200k?"),
        ("Is the 2nd floor open?", "Is the second floor open?"),
        ("What are some must-have tools?", "What are must have tools?"),
        ("Who runs the IT department?", "who runs the IT department"),
        ("Is a 5 percent fee due?", "Is a 5 % fee due?"),
    ],
)
def test_wordings_of_the_same_question_agree(one: str, other: str) -> None:
    assert told_apart_by(one, other) is None


@pytest.mark.parametrize(
    ("trait", "one", "other"),
    [
        ("negation", "Can I cancel the order?", "Can I not cancel the order?"),
        ("negation", "Who can log in with a token?", "Who can't log in with a token?"),
        ("negation", "Which plans include support?", "Which plans include no support?"),
        ("negation", "Is it possible with a key?", "Is it possible without a key?"),
        ("negation", "Who pays rent?", "Who pays -rent?"),
        ("words", "Is it possible to cancel?", "Is it impossible to cancel?"),
        ("numbers", "What changed in 2023?", "What changed in 2024?"),
        ("numbers", "Who gets two days?", "Who gets three days?"),
        ("numbers", "Who gets 20 days?", "Who gets 200 days?"),
        ("numbers", "Is 1.5 supported?", "Is 15 supported?"),
        ("numbers", "Who gets 1,50 euros?", "Who gets 150 euros?"),
        ("numbers", "Which came first?", "Which came second?"),
        ("numbers", "Does it fall from 5 to 3?", "Does it fall from 3 to 5?"),
        ("numbers", "What holds for 200 people?", "What holds for people?"),
        ("names", "Is the office open in March?", "Is the office open in May?"),
        ("names", "What is due on Monday?", "What is due on Tuesday?"),
        ("words", "What is due tomorrow?", "What is due today?"),
        ("names", "Where is the office in Paris?", "Where is the office in London?"),
        ("words", "where is the office in paris?", "where is the office in london?"),
        ("names", "Who leads Team A?", "Who leads Team B?"),
        ("names", "Who runs the IT department?", "Who runs it, the department?"),
        ("names", "What does `get_all` return?", "What does `get_one` return?"),
        ("words", "Is C supported?", "Is C++ supported?"),
        ("names", "Who sells Windows?", "Who sells a window?"),
        ("names", "Is INTP-A rare?", "Is INTP rare?"),
        ("asked", "Who approves travel?", "When is travel approved?"),
        ("asked", "How did the merger happen?", "Why did the merger happen?"),
        ("asked", "Does the merger happen?", "Why does the merger happen?"),
        ("words", "How much is travel?", "How long is travel?"),
        ("words", "Why do prices increase?", "Why do prices decrease?"),
        ("words", "What comes before review?", "What comes after review?"),
        ("words", "What is the maximum size?", "What is the minimum size?"),
        ("words", "Is more than this allowed?", "Is less than this allowed?"),
        ("words", "How do girls see boys?", "How do boys see girls?"),
        ("words", "How do I convert euros to pounds?", "How do I convert pounds to euros?"),
        ("words", "What is the best way to reset my password?", "How can I reset a password?"),
        ("words", "Can I see your salary?", "Can you see my salary?"),
        ("words", "What does an auditor do?", "What is an auditor?"),
        ("words", "Can I work at home?", "Should I work at home?"),
        ("words", "Who paid the fee?", "Who pays for the fee?"),
        ("words", "What is free and open?", "What is free or open?"),
        ("words", "Is the file read from disk?", "Is the file read to disk?"),
        ("words", "Darf ich kündigen?", "Darf ich nicht kündigen?"),
        ("words", "¿Quién paga el viaje?", "¿Quién aprueba el viaje?"),
        ("words", "?", "?"),
    ],
)
def test_questions_that_differ_are_told_apart(trait: str, one: str, other: str) -> None:
    assert told_apart_by(one, other) == trait


@pytest.mark.parametrize(
    "text", ["", " ", "?" * 500, "a, " * 166, "IT " * 166, "so " * 160, "-" * 500]
)
def test_any_text_can_be_compared(text: str) -> None:
    told_apart_by(text, "Who approves travel?")
    wording: Any = Wording(text)
    assert isinstance(wording.words, tuple)
