"""Markdown from documents and models, turned into HTML that can do nothing but be read.

Raw HTML is shown as text, images as their description, links as their words: a document must not
be able to make a reader's browser fetch, run or open anything. The sanitiser stands behind the
renderer in case the renderer errs.
"""

import re
from collections.abc import Callable, Collection, Iterable, MutableMapping, Sequence
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import OptionsDict
from markupsafe import Markup

Environment = MutableMapping[str, Any]
Span = tuple[int, int]

_MARKER = re.compile(r"\s*\[(\d{1,3})\]")

# Private-use characters carry the ends of a highlight through the parser.
_MARK_START, _MARK_END = "\ue000", "\ue001"
_MARKS = re.compile(f"([{_MARK_START}{_MARK_END}])")

# What opens or closes a block must stay at its place, so a highlight begins after it.
_BLOCK_OPENING = re.compile(
    r"[ \t]*(?:(?:[-*+]|\d{1,9}[.)]|#{1,6}|>)[ \t]+|\|[ \t]*|(?:`{3,}|~{3,})[^\n]*\n)*"
)
_BLOCK_CLOSING = re.compile(r"[ \t]*\|[ \t]*$|\n(?:`{3,}|~{3,})[ \t]*$")

_TAGS = {
    "a", "blockquote", "br", "code", "del", "em", "hr", "li", "mark", "ol", "p", "pre", "strong",
    "sup", "table", "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip
_ATTRIBUTES = {"a": {"aria-label", "class", "href", "id"}, "ol": {"start"}, "p": {"class"}}


def render_answer(text: str, name: str, numbers: Collection[int]) -> Markup:
    """An answer as HTML. A marker `[n]`, for n in `numbers`, links to the fragment `NAME-note-n`.

    The first marker of each number is itself the fragment `NAME-mark-n`, for the way back.
    """
    return _render(_without_marks(text), {"name": name, "numbers": numbers, "seen": set()})


def render_passage(text: str, highlights: Iterable[Span] = ()) -> Markup:
    """A passage as HTML, with the given character spans of it highlighted."""
    return _render(_with_marks(text, highlights), {})


def _render(text: str, environment: Environment) -> Markup:
    html = _PARSER.render(text, environment)
    # Everything in it was escaped by the renderer and then filtered by the sanitiser.
    return Markup(  # noqa: S704
        nh3.clean(
            html,
            tags=_TAGS,
            attributes=_ATTRIBUTES,
            attribute_filter=_only_fragments,
            url_schemes=set(),
            link_rel=None,
        )
    )


def _only_fragments(_tag: str, attribute: str, value: str) -> str | None:
    return value if attribute != "href" or value.startswith("#") else None


def _without_marks(text: str) -> str:
    return _MARKS.sub("", text)


def _with_marks(text: str, highlights: Iterable[Span]) -> str:
    if _MARKS.search(text):
        return _without_marks(text)
    parts: list[str] = []
    position = 0
    for start, end in _merged(highlights, len(text)):
        begins_line = not text[text.rfind("\n", 0, start) + 1 : start].strip()
        opening = _BLOCK_OPENING.match(text, start, end) if begins_line else None
        start = opening.end() if opening else start
        end = start + len(text[start:end].rstrip())
        if closing := _BLOCK_CLOSING.search(text, start, end):
            end = closing.start()
        if start < end:
            parts += [text[position:start], _MARK_START, text[start:end], _MARK_END]
            position = end
    return "".join([*parts, text[position:]])


def _merged(spans: Iterable[Span], length: int) -> list[Span]:
    merged: list[Span] = []
    for start, end in sorted((max(0, start), min(length, end)) for start, end in spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif start < end:
            merged.append((start, end))
    return merged


# --- what the renderer does otherwise than by default ---------------------------------------------


def _highlighted(text: str, environment: Environment, show: Callable[[str], str]) -> str:
    """`text` shown piece by piece; the state outlives the call, for a highlight may span blocks."""
    shown: list[str] = []
    for piece in _MARKS.split(text):
        if piece in (_MARK_START, _MARK_END):
            environment["highlighting"] = piece == _MARK_START
        elif piece:
            inner = show(piece)
            shown.append(f"<mark>{inner}</mark>" if environment.get("highlighting") else inner)
    return "".join(shown)


def _text(
    _self: RendererHTML,
    tokens: Sequence[Token],
    index: int,
    _options: OptionsDict,
    environment: Environment,
) -> str:
    name: str = environment.get("name", "")
    numbers: Collection[int] = environment.get("numbers", ())
    seen: set[int] = environment.get("seen", set())

    def link(match: re.Match[str]) -> str:
        number = int(match.group(1))
        if number not in numbers:
            return match.group()
        identity = "" if number in seen else f' id="{name}-mark-{number}"'
        seen.add(number)
        return (
            f'<sup><a class="marker" href="#{name}-note-{number}"{identity}'
            f' aria-label="Footnote {number}">{number}</a></sup>'
        )

    return _highlighted(
        tokens[index].content, environment, lambda piece: _MARKER.sub(link, escapeHtml(piece))
    )


def _code(
    _self: RendererHTML,
    tokens: Sequence[Token],
    index: int,
    _options: OptionsDict,
    environment: Environment,
) -> str:
    shown = _highlighted(tokens[index].content, environment, escapeHtml)
    return (
        f"<code>{shown}</code>"
        if tokens[index].type == "code_inline"
        else f"<pre><code>{shown}</code></pre>\n"
    )


def _image(
    self: RendererHTML,
    tokens: Sequence[Token],
    index: int,
    options: OptionsDict,
    environment: Environment,
) -> str:
    description = self.renderInlineAsText(tokens[index].children, options, environment)
    return _highlighted(description, environment, escapeHtml)


def _nothing(*_: object) -> str:
    return ""


def _heading_open(*_: object) -> str:
    """A passage's own headings are words to read; the page keeps the outline for itself."""
    return '<p class="heading">'


def _heading_close(*_: object) -> str:
    return "</p>\n"


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    # `[1]: address` would turn a marker into a link to that address.
    parser.disable("reference")
    for token, rule in {
        "text": _text,
        "code_inline": _code,
        "code_block": _code,
        "fence": _code,
        "image": _image,
        "link_open": _nothing,
        "link_close": _nothing,
        "heading_open": _heading_open,
        "heading_close": _heading_close,
    }.items():
        parser.add_render_rule(token, rule)
    return parser


_PARSER = _parser()
