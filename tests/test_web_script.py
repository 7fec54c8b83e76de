"""The renderer of the page's script, run outside a browser: it agrees with the server's."""

import json
import shutil
import subprocess
from typing import Any

import pytest

from app.web.markdown import render_answer, render_passage
from tests.conftest import ROOT
from tests.test_web_markdown import DOCUMENT, HARMLESS, HOSTILE, Elements

RENDERER = ROOT / "app" / "web" / "static" / "markdown.js"
STAND_IN = ROOT / "tests" / "doubles" / "dom.mjs"


def run(cases: list[tuple[str, dict[str, Any]]]) -> list[Elements]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js, which Footnote itself does not")
    done = subprocess.run(
        [node, str(STAND_IN)],
        input=json.dumps([RENDERER.as_uri(), cases]),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [Elements(html) for html in json.loads(done.stdout)]


ANSWERS = [
    "It is so [1]. And so [2][1]; not [7].",
    "First:\n\n- one [1]\n- **two** [2]\n\nThen `code [1]` and _this_.",
    "para\nwith a break\n\n1. a\n2. b\n\n> quoted [1]",
    "snake_case_name, 2 * 3 * 4, a \\* b, ``x ` y``",
    "| a | b |\n|---|---|\n| 1 [1] | 2 |",
    "```python\nx = '[1]'\n```",
    "unclosed **bold and `code",
]


def without_space(elements: Elements) -> str:
    return "".join(elements.text.split())


def test_answers_read_the_same_as_on_the_server() -> None:
    shown = run([(text, {"numbers": [1, 2]}) for text in ANSWERS])
    for text, here in zip(ANSWERS, shown, strict=True):
        there = Elements(render_answer(text, "e1", {1, 2}))
        assert without_space(here) == without_space(there)
        for kind in ("a", "strong", "em", "code", "li", "td", "th", "pre", "blockquote"):
            assert here.all(kind) == there.all(kind), (text, kind)


@pytest.mark.parametrize(
    "quote", ["has **thirty", "| leave | 30 |", "- first, ask\n- then, go", "# Leave", DOCUMENT]
)
def test_highlights_cover_the_same_words_as_on_the_server(quote: str) -> None:
    start = DOCUMENT.index(quote)
    span = (start, start + len(quote))
    [here] = run([(DOCUMENT, {"highlights": [span]})])
    there = Elements(render_passage(DOCUMENT, [span]))
    assert "".join(here.marked.split()) == "".join(there.marked.split())


def test_nothing_runs_fetches_or_leads_away() -> None:
    for shown in run([(text, {"numbers": [1]}) for text in HOSTILE]):
        for tag, attributes in shown.found:
            assert tag in HARMLESS
            assert set(attributes) <= {"class", "href", "id", "aria-label", "start"}
            assert (attributes.get("href") or "#").startswith("#")


def test_long_runs_of_signs_are_read_in_no_time() -> None:
    signs = ["*", "_", "`", "[", "> ", "- ", "| ", " ", "# ", "\\", "[1]("]
    run([(sign * 5000, {}) for sign in signs])
