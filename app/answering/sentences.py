"""Text into sentences, each with its exact place; for passages and for answers alike. Pure."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Kind = Literal["prose", "item", "code", "row", "heading"]

MARKERS = r"(?:\s*\[\d{1,3}\])*"


@dataclass(frozen=True, slots=True)
class Sentence:
    """`text[start:end]` is the sentence; `block` numbers the paragraph, list or table it is in.

    A code block and a table's row are one sentence each. `kind` tells them apart.
    """

    start: int
    end: int
    kind: Kind
    block: int


_FENCE = re.compile(r"\s{0,3}(`{3,}|~{3,})")
_HEADING = re.compile(r"\s{0,3}#{1,6}(?:\s|$)")
_UNDERLINE = re.compile(r"\s{0,3}(?:=+|-{2,})\s*$")
_RULE = re.compile(r"\s{0,3}(?:[-*_]\s*){3,}$")
_ITEM = re.compile(r"\s*(?:[-*+•‣◦–]|\(?(?:\d{1,3}|[A-Za-z])[.)])\s+")
_ROW = re.compile(r"\s*\|.*\|\s*$|[^|]+\|[^|]+\|.*$")
_DIRECTIVE = re.compile(r"\s*(?:/{3}|:{3}|!{3}|\{[%*]|<!--.*-->\s*$)")
_TABLE_RULE = re.compile(r"\s*\|?(?:\s*:?-{2,}:?\s*\|?)+\s*$")

_BOUNDARY = re.compile(
    # a terminator, what closes with it, and the markers that belong to the sentence
    rf"(?P<mark>[.!?…]+)[\"”’'»)\]*_`]*{MARKERS}(?=\s|$)|[。！？]+[」』”’）]*{MARKERS}"
)
_LAST_WORD = re.compile(r"[^\s(\[\"“‘'*_]+$")
_OPENING = re.compile(r"[\s\"“‘'(\[*_`«¿¡]*")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NEVER_LAST = _words(
    "mr mrs ms dr prof rev gen gov capt lt col sgt hon mt ft e.g i.e vs cf viz approx ca"
)
_BEFORE_NUMBERS = _words(
    "no nos fig figs eq eqs sec secs ch chap vol p pp art para ver "
    "jan feb mar apr jun jul aug sep sept oct nov dec"
)
"""Abbreviations before a number; words like any other elsewhere."""
_SOMETIMES_LAST = _words(
    "etc al st sr jr inc ltd co corp llc u.s u.k u.n e.u a.m p.m ph.d b.c a.d est dept univ ed eds"
)
"""End a sentence, like initials, when a typical first word follows."""
_FIRST_WORDS = _words(
    "the a an this that these those it its he she they we you i in on at by for from if when "
    "while as after before since to there here however but and or so then also all some each "
    "no not his her their our my your what who how why where which"
)


def split_sentences(text: str) -> list[Sentence]:
    """The sentences of a text in their order; they never overlap, and only space lies between.

    Markdown's structure is respected: fences, headings, list items and rows end a sentence even
    without a full stop, and wrapped lines do not.
    """
    sentences: list[Sentence] = []
    for number, (start, end, kind) in enumerate(_blocks(text)):
        if kind in ("prose", "item"):
            for first, last in _within(text, start, end):
                sentences.append(Sentence(first, last, kind, number))
        else:
            sentences.append(Sentence(start, end, kind, number))
    return sentences


def _blocks(text: str) -> Iterator[tuple[int, int, Kind]]:
    """Stretches of one kind without the space around them; a wrapped paragraph is one."""
    lines = _lines(text)
    at = 0
    while at < len(lines):
        start, end, line = lines[at]
        following = lines[at + 1][2] if at + 1 < len(lines) else ""
        at += 1
        kind: Kind = "prose"
        if not line.strip() or _is_ruling(line):
            continue
        if fence := _FENCE.match(line):
            kind = "code"
            while at < len(lines):
                end = lines[at][1]
                at += 1
                if lines[at - 1][2].strip().startswith(fence.group(1)):
                    break
        elif _HEADING.match(line) or (_UNDERLINE.match(following) and not _ITEM.match(line)):
            kind = "heading"
        elif _ROW.match(line):
            kind = "row"
        else:
            kind = "item" if _ITEM.match(line) else "prose"
            while at < len(lines) and not _begins_block(lines, at):
                end = lines[at][1]
                at += 1
        yield *_trimmed(text, start, end), kind


def _lines(text: str) -> list[tuple[int, int, str]]:
    found: list[tuple[int, int, str]] = []
    at = 0
    for line in text.splitlines(keepends=True):
        found.append((at, at + len(line), line.rstrip("\r\n")))
        at += len(line)
    return found


def _is_ruling(line: str) -> bool:
    """Lines that only structure: rules, underlines, and what a documentation tool acts upon."""
    return any(each.match(line) for each in (_RULE, _UNDERLINE, _TABLE_RULE, _DIRECTIVE))


def _begins_block(lines: list[tuple[int, int, str]], at: int) -> bool:
    line = lines[at][2]
    following = lines[at + 1][2] if at + 1 < len(lines) else ""
    return (
        not line.strip()
        or _is_ruling(line)
        or bool(_FENCE.match(line) or _HEADING.match(line) or _ITEM.match(line) or _ROW.match(line))
        or bool(following.strip() and _UNDERLINE.match(following))
    )


def _within(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The sentences of one paragraph or list item."""
    block = text[start:end]
    is_caseless = block == block.lower()
    cuts = {
        found.end() for found in _BOUNDARY.finditer(block) if _ends(block, found, is_caseless)
    } | _line_cuts(block)
    at = 0
    for cut in [*sorted(cuts), len(block)]:
        first, last = _trimmed(text, start + at, start + cut)
        if first < last:
            yield first, last
        at = cut


def _ends(block: str, found: re.Match[str], is_caseless: bool) -> bool:
    """Whether this terminator ends a sentence."""
    mark = found.group("mark")
    rest = block[found.end() :]
    if mark is None or not rest.strip():
        return True
    opening = _OPENING.match(rest)
    following = rest[opening.end() if opening else 0 :]
    before = block[: found.start()]
    if mark == "." and before and not before[-1].isspace():
        last = _LAST_WORD.search(before)
        word = last.group().lower() if last else ""
        if word in _NEVER_LAST or (word in _BEFORE_NUMBERS and following[:1].isdigit()):
            return False
        if word in _SOMETIMES_LAST or (len(word) == 1 and word.isalpha()):
            first = re.match(r"[A-Z]\w*", following)
            return bool(first and first.group().lower() in _FIRST_WORDS)
        # The number of a list item, not the end of a sentence.
        if (
            word.isdigit()
            and len(word) < 4
            and last is not None
            and not before[: last.start()].strip()
        ):
            return False
    if is_caseless:
        return True
    # Before a small letter the text goes on, unless the full stop stands alone.
    return not following[:1].islower() or (bool(before) and before[-1].isspace())


def _line_cuts(block: str) -> set[int]:
    """Line ends that end a sentence without a full stop: those of lines that are not wrapped.

    A wrapped paragraph's lines are about equally long. A line much shorter than its longest one,
    followed by a capital, stood alone.
    """
    lines = block.split("\n")
    if len(lines) == 1:
        return set()
    longest = max(map(len, lines))
    cuts: set[int] = set()
    at = 0
    for line, following in pairwise(lines):
        at += len(line) + 1
        goes_on = line.rstrip()[-1:] in ",;(" or not following.lstrip('*_ \t"“')[:1].isupper()
        if len(line) < 0.6 * longest and not goes_on:
            cuts.add(at)
    return cuts


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


# --- for reading ---------------------------------------------------------------------------------

_BULLET = re.compile(r"^(?:>\s?)*\s*(?:[-*+•‣◦–]|\(?\d{1,3}[.)])\s+")
_IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
_LINK = re.compile(r"\[([^\]]+)\]\((?:[^()\s]|\([^()]*\))*(?:\s+\"[^\"]*\")?\)")
_REFERENCE_LINK = re.compile(r"\[([^\]\d][^\]]*)\]\[[^\]]*\]")
_NUMBER_IN_BRACKETS = re.compile(r"\s?\[\^?\d{1,3}(?:\s*[,;–-]\s*\d{1,3})*\]")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>|<!--.*?-->", re.DOTALL)
_EMPHASIS = re.compile(r"(?<!\w)(\*{1,3}|_{1,3})(?=\S)(.+?)(?<=\S)\1(?!\w)", re.DOTALL)
_BOLD = re.compile(r"\*\*(?=\S)(.+?)(?<=\S)\*\*", re.DOTALL)
_ESCAPE = re.compile(r"\\([\\`*_{}\[\]()#+\-.!|>~])")
_QUOTE_MARK = re.compile(r"^\s*(?:>\s?)+", re.MULTILINE)
_INLINE_CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)


def readable(raw: str, kind: Kind = "prose") -> str:
    """A sentence as it reads outside its document: without markup, on one line.

    Code keeps its form. Numbers in square brackets go, because in an answer they are markers.
    """
    if kind == "code":
        return raw
    if kind == "row":
        cells = [readable(cell) for cell in raw.strip().strip("|").split("|")]
        return " · ".join(cell for cell in cells if cell)
    text = _QUOTE_MARK.sub("", raw)
    text = _LINK.sub(r"\1", _IMAGE.sub("", _BULLET.sub("", text)))
    pieces: list[str] = []
    at = 0
    for code in _INLINE_CODE.finditer(text):
        pieces += [_without_markup(text[at : code.start()]), code.group()]
        at = code.end()
    pieces.append(_without_markup(text[at:]))
    return " ".join("".join(pieces).split())


def _without_markup(text: str) -> str:
    text = _REFERENCE_LINK.sub(r"\1", text)
    text = _NUMBER_IN_BRACKETS.sub("", text)
    text = _TAG.sub("", text)
    text = _BOLD.sub(r"\1", text)
    text = _EMPHASIS.sub(r"\2", text)
    return _ESCAPE.sub(r"\1", text)
