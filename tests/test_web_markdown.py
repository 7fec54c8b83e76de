"""Markdown from strangers: it can be read, and it can do nothing."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.web.markdown import render_answer, render_passage

HARMLESS = {
    "a", "blockquote", "br", "code", "del", "em", "hr", "li", "mark", "ol", "p", "pre", "strong",
    "sup", "table", "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip


class Elements(HTMLParser):
    """The elements of a fragment, and its words; fails on what is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.marked = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.found if found == tag]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("br", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "mark" in self.open:
            self.marked += data


def passage(text: str, *quotes: str) -> Elements:
    spans = [(text.index(quote), text.index(quote) + len(quote)) for quote in quotes]
    return Elements(render_passage(text, spans))


def letters(text: str) -> str:
    """What is left of a text without the signs of Markdown and without white space."""
    return re.sub(r"[\W_]", "", text)


# --- what it cannot do ----------------------------------------------------------------------------


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![pixel](https://evil.example/p.png)",
    "![pixel][1]\n\n[1]: https://evil.example/p.png",
    "[click](javascript:alert(1))",
    "[click](https://evil.example)",
    "<https://evil.example>",
    "https://evil.example",
    "<svg/onload=alert(1)>",
    '<a href="#x" onclick="alert(1)">x</a>',
    "<style>@import 'https://evil.example'</style>",
    "<iframe src=//evil.example></iframe>",
    "[a](data:text/html;base64,PHNjcmlwdD4=)",
    "`<script>alert(1)</script>`",
    "```html\n<script>alert(1)</script>\n```",
    '[1](https://evil.example "onmouseover=alert(1)")',
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_nothing_runs_fetches_or_leads_away(hostile: str) -> None:
    for html in (render_answer(hostile, "e1", {1}), render_passage(hostile, [(0, len(hostile))])):
        for tag, attributes in Elements(html).found:
            assert tag in HARMLESS
            assert not any(name.startswith("on") for name in attributes)
            assert {"src", "style", "srcset"}.isdisjoint(attributes)
            assert (attributes.get("href") or "#").startswith("#")


@given(st.text(max_size=300), st.data())
@example("\ue000# x\ue001", None)
@example("[1]: /url\n\n[1]", None)
def test_any_text_gives_harmless_closed_elements(text: str, data: st.DataObject | None) -> None:
    position = st.integers(-5, len(text) + 5)
    spans = data.draw(st.lists(st.tuples(position, position), max_size=3)) if data else []
    for html in (render_answer(text, "e1", {1, 2}), render_passage(text, spans)):
        assert {tag for tag, _ in Elements(html).found} <= HARMLESS


# --- footnotes ------------------------------------------------------------------------------------


def test_markers_become_links_to_their_notes() -> None:
    answer = Elements(render_answer("It is so [1]. And so [2][1].", "e1", {1, 2}))
    links = [attributes for tag, attributes in answer.found if tag == "a"]
    assert [link["href"] for link in links] == ["#e1-note-1", "#e1-note-2", "#e1-note-1"]
    assert [link.get("id") for link in links] == ["e1-mark-1", "e1-mark-2", None]
    assert answer.text.strip() == "It is so1. And so21."


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("See [3].", {1}), ("In `a[1]`.", {1}), ("```\na[1]\n```", {1}), ("[1](/elsewhere)", {1})],
)
def test_what_is_no_footnote_stays_text(text: str, numbers: set[int]) -> None:
    answer = Elements(render_answer(text, "e1", numbers))
    assert [tag for tag, _ in answer.found if tag == "a"] == []


def test_a_reference_definition_cannot_redirect_a_marker() -> None:
    answer = Elements(render_answer("So [1].\n\n[1]: https://evil.example", "e1", {1}))
    assert {attributes["href"] for tag, attributes in answer.found if tag == "a"} == {"#e1-note-1"}


# --- highlights -----------------------------------------------------------------------------------

DOCUMENT = """# Leave

Everyone has **thirty days** of leave. Ask _early_.

| kind | days |
|---|---|
| leave | 30 |
| care | 10 |

- first, ask
- then, go

> Quoted words.

1. one
2. two

```
days = 30
```

The end.
"""


@pytest.mark.parametrize(
    "quote",
    [
        "Everyone has **thirty days** of leave.",
        "**thirty days** of leave.",
        "has **thirty",
        "# Leave\n\nEveryone has",
        "| leave | 30 |",
        "| leave | 30 |\n| care | 10 |",
        "- first, ask\n- then, go",
        "> Quoted words.",
        "1. one\n2. two",
        "```\ndays = 30\n```",
        "then, go\n\n> Quoted words.",
        DOCUMENT,
    ],
)
def test_a_highlight_covers_its_words_and_changes_no_other(quote: str) -> None:
    plain = Elements(render_passage(DOCUMENT))
    shown = passage(DOCUMENT, quote)
    assert shown.text == plain.text
    assert [tag for tag, _ in shown.found if tag != "mark"] == [tag for tag, _ in plain.found]
    # List numbers are drawn by the browser.
    expected = re.sub(r"^\d\. ", "", quote, flags=re.MULTILINE).replace("|---|---|", "")
    assert letters(shown.marked) == letters(expected)


def test_several_highlights_may_touch_and_overlap() -> None:
    text = "one two three four"
    assert Elements(render_passage(text, [(0, 7), (4, 13), (30, 40), (5, 5)])).marked == (
        "one two three"
    )


def test_text_that_holds_the_carriers_of_highlights_is_shown_without() -> None:
    shown = Elements(render_passage("a \ue000b\ue001 c", [(0, 1)]))
    assert shown.text.strip() == "a b c"
    assert shown.marked == ""
