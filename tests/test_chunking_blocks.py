"""The scanner of blocks, held against a real Markdown parser where the two must agree."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from ingestion.chunking.blocks import read_blocks

_LINES = st.sampled_from(
    [
        "", "", "# One", "## Two", "### Three #", "#not", "plain words", "more words", "- item",
        "* star", "1. first", "  - nested", "  continued", "```", "```py", "~~~", "| a | b |",
        "| - | - |", "| 1 | 2 |", "> quote", "***",
    ]
)  # fmt: skip


def kinds(text: str) -> list[tuple[str, str]]:
    return [(block.kind, text[block.start : block.end]) for block in read_blocks(text, "markdown")]


@settings(max_examples=300, deadline=None)
@given(st.lists(_LINES, max_size=12))
def test_headings_are_those_of_a_markdown_parser(lines: list[str]) -> None:
    text = "\n".join(lines)
    found = [
        (text.count("\n", 0, block.start), block.level)
        for block in read_blocks(text, "markdown")
        if block.kind == "heading"
    ]
    parser = MarkdownIt("commonmark").enable("table")
    expected = [
        (token.map[0], int(token.tag[1]))
        for token in parser.parse(text)
        if token.type == "heading_open" and token.level == 0 and token.map
    ]
    assert found == expected


def test_each_kind_of_block_is_told_apart() -> None:
    text = (
        "# Title\n\nA paragraph\nof two lines\n\n- one\n\n  inside one\n- two\n\n"
        "```sh\nmake\n\nmake test\n```\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\nafter"
    )
    assert kinds(text) == [
        ("heading", "# Title"),
        ("paragraph", "A paragraph\nof two lines"),
        ("list", "- one\n\n  inside one\n- two"),
        ("code", "```sh\nmake\n\nmake test\n```"),
        ("table", "| a | b |\n| --- | --- |\n| 1 | 2 |"),
        ("paragraph", "after"),
    ]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("- item\n\n      indented under the item", "list"),
        ("- item\n  ```\n  code\n\n  more\n  ```\n- next", "list"),
        ("````\n```\n````", "code"),
        ("``` not ` a fence", "paragraph"),
        ("    x = 1\n\n    y = 2", "code"),
        ("a | b", "paragraph"),
        ("> # quoted\n> text", "paragraph"),
    ],
)
def test_what_belongs_together_is_one_block(text: str, kind: str) -> None:
    assert kinds(text) == [(kind, text)]


def test_a_rule_ends_a_list_and_a_setext_line_needs_a_paragraph() -> None:
    assert [kind for kind, _ in kinds("- item\n---\nText\n---\n\n---")] == [
        "list",
        "paragraph",
        "heading",
        "paragraph",
    ]
