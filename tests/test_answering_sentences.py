"""Where sentences begin and end, and how they read."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from app.answering.sentences import Kind, readable, split_sentences


def sentences(text: str) -> list[str]:
    return [text[each.start : each.end] for each in split_sentences(text)]


def kinds(text: str) -> list[tuple[Kind, str]]:
    return [(each.kind, text[each.start : each.end]) for each in split_sentences(text)]


@pytest.mark.parametrize(
    "text",
    [
        "Mr. Smith and Dr. Jones met Prof. Ada at St. Mary's.",
        "It costs $3.50, i.e. less than 4.00 euros, e.g. at noon.",
        "See Fig. 3 and Sec. 4.2 on pp. 12 ff. of the report.",
        "The U.S. Government and Acme Inc. signed on Jan. 5.",
        "J. R. R. Tolkien wrote it.",
        'She said "Stop!" and left.',
        "What?! is what he said.",
        "Use app.config.Settings from v1.2.3 of the file a.txt for this.",
        "Wait... there is more.",
    ],
)
def test_these_are_one_sentence(text: str) -> None:
    assert sentences(text) == [text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("It is v1.2. It works.", ["It is v1.2.", "It works."]),
        ("Pens, ink, etc. The rest is free.", ["Pens, ink, etc.", "The rest is free."]),
        ("We moved to the U.S. It was cold.", ["We moved to the U.S.", "It was cold."]),
        ("The answer is no. Ask again.", ["The answer is no.", "Ask again."]),
        ("Take vitamin C. It helps.", ["Take vitamin C.", "It helps."]),
        ("It ended in 1999. 2000 was next.", ["It ended in 1999.", "2000 was next."]),
        ("(It is so.) It stays so.", ["(It is so.)", "It stays so."]),
        ("So it is.[1] And more [2]. Last [3]", ["So it is.[1]", "And more [2].", "Last [3]"]),
        ("So it is. [1][2] And more.", ["So it is. [1][2]", "And more."]),
        ("你好。世界！再见", ["你好。", "世界！", "再见"]),
        ("a wing in air . lift was found .", ["a wing in air .", "lift was found ."]),
        ("all is small. so is this.", ["all is small.", "so is this."]),
    ],
)
def test_sentences_end_where_they_do(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_wrapped_lines_are_one_sentence_and_short_lines_their_own() -> None:
    wrapped = (
        "This paragraph is wrapped at about the same width in all of its lines, so\n"
        "Python and other capitals at the beginning of a line do not end anything."
    )
    assert sentences(wrapped) == [wrapped]
    listed = "Introduction\nLearn what the product does and how you can begin to use it.\nPricing"
    assert sentences(listed) == listed.split("\n")


def test_markdown_structure_ends_sentences() -> None:
    text = (
        "# Setup\n\nTo install:\n\n```bash\npip install x\n# no. Not a sentence.\n```\n"
        "- First item. It has two.\n- **Second** item\n  goes on\n1. Numbered\n\n"
        "| a | b |\n|---|---|\n| 1 | 2 |\n\nTitle\n=====\n\n/// note\nThe end.\n///\n"
    )
    assert kinds(text) == [
        ("heading", "# Setup"),
        ("prose", "To install:"),
        ("code", "```bash\npip install x\n# no. Not a sentence.\n```"),
        ("item", "- First item."),
        ("item", "It has two."),
        ("item", "- **Second** item\n  goes on"),
        ("item", "1. Numbered"),
        ("row", "| a | b |"),
        ("row", "| 1 | 2 |"),
        ("heading", "Title"),
        ("prose", "The end."),
    ]
    blocks = [each.block for each in split_sentences(text)]
    assert blocks[3] == blocks[4] != blocks[5]


def test_a_fence_that_never_closes_ends_with_the_text() -> None:
    assert kinds("Before.\n```\ncode. More") == [("prose", "Before."), ("code", "```\ncode. More")]


@given(st.text(alphabet="aA .!?\n\t`#-*|=[]1:。", max_size=120))
def test_sentences_never_overlap_and_only_structure_lies_between(text: str) -> None:
    # Lines such as ":::note" are structure with letters in it.
    assume(not re.search(r"^\s*(?:!{3}|:{3})", text, re.MULTILINE))
    end = 0
    for sentence in split_sentences(text):
        assert end <= sentence.start < sentence.end <= len(text)
        assert not any(character.isalpha() for character in text[end : sentence.start])
        content = text[sentence.start : sentence.end]
        assert content == content.strip()
        end = sentence.end
    assert not any(character.isalpha() for character in text[end:])


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("- **Bold** and *slanted* and __both__", "Bold and slanted and both"),
        ("3. A [link](https://x.y/a_(b)) and ![image](i.png)", "A link and"),
        (
            "See [`code`](../a.md) in `a_b_c` and snake_case_name",
            "See `code` in `a_b_c` and snake_case_name",
        ),
        ("> Quoted\n> lines", "Quoted lines"),
        ("As known.[3] And this [1, 2] too [^4].", "As known. And this too."),
        ("Some <b>tags</b> and\n  space", "Some tags and space"),
        (r"Escaped \* star", "Escaped * star"),
        ("5 * 3 * 2 stays", "5 * 3 * 2 stays"),
    ],
)
def test_reading_leaves_markup_out(raw: str, expected: str) -> None:
    assert readable(raw) == expected


def test_code_keeps_its_form_and_rows_become_text() -> None:
    assert readable("```\na  [1]\n```", "code") == "```\na  [1]\n```"
    assert readable("| **a** | | b |", "row") == "a · b"
