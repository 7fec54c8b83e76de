"""The markers of an answer, read while it is still being written. Pure.

A model writes `[1]`, `[2][3]`, `[1, 2]` or `[Source 4]`, cut anywhere by its tokens, and sometimes
a number that no source has. Readers get `[n]` for sources that exist, and nothing else.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from app.answering.sentences import Sentence, readable, split_sentences
from app.answering.words import content_terms

MAX_RANGE = 10
MAX_HELD_BACK_CHARS = 60

_NUMBERS = r"#?\d{1,4}(?:\s*(?:[,;&–—-]|\band\b)\s*(?:sources?\s*)?#?\d{1,4})*"
_MARKER = rf"[ \t]*[\[【]\s*(?:\^|sources?:?\s*)?(?P<numbers>{_NUMBERS})\s*(?:†[^\]】\n]*)?[\]】]"
_INTERESTING = re.compile(rf"(?P<ticks>`+)|(?P<marker>{_MARKER})|(?P<line>\n)", re.IGNORECASE)
# What may turn out to be a marker, or a space before one that will go, or more ticks.
_UNDECIDED = re.compile(
    rf"`+$|[ \t]*(?:[\[【][\s\d,;&^#:–—acdenorsu-]{{0,{MAX_HELD_BACK_CHARS}}}"
    rf"(?:†[^\]】\n]{{0,{MAX_HELD_BACK_CHARS}}})?)?$",
    re.IGNORECASE,
)
_INSIDE_MARKERS = frozenset("[【,0123456789")
_CANONICAL = re.compile(r"\[(\d{1,3})\]")
_INLINE_CODE = re.compile(r"(`+).+?\1", re.DOTALL)
_RANGE = re.compile(r"(\d+)\s*[–—-]\s*(\d+)")


class MarkerReader:
    """Passes text on as it comes, with every marker made `[n]` and invented ones left out.

    Brackets in code are code. Never more than a possible marker is held back.
    """

    def __init__(self, sources_count: int) -> None:
        self._sources_count = sources_count
        self._held_back = ""
        self._shown_last = " "
        self._code_ticks = 0
        """How many ticks opened the code that the text is in: 0 outside, 3 and more in a fence."""

    def feed(self, text: str) -> str:
        """What may be shown after this piece."""
        buffer = self._held_back + text
        undecided = _UNDECIDED.search(buffer)
        settled = undecided.start() if undecided else len(buffer)
        self._held_back = buffer[settled:]
        return self._rewritten(buffer[:settled])

    def finish(self) -> str:
        """What was held back: at the end of the text it is no marker any more."""
        rest, self._held_back = self._held_back, ""
        return self._rewritten(rest).rstrip()

    def _rewritten(self, text: str) -> str:
        rewritten = ""
        at = 0
        for found in _INTERESTING.finditer(text):
            rewritten += text[at : found.start()]
            replacement = self._replacement(found)
            # What stood around a marker that goes must not become one: `[[9]7]`.
            is_inside = (self._shown_last + rewritten)[-1:] in _INSIDE_MARKERS
            rewritten += replacement or (" " if is_inside else "")
            at = found.end()
        rewritten += text[at:]
        self._shown_last = rewritten[-1:] or self._shown_last
        return rewritten

    def _replacement(self, found: re.Match[str]) -> str:
        if ticks := found.group("ticks"):
            if self._code_ticks == 0:
                self._code_ticks = len(ticks)
            elif len(ticks) == self._code_ticks or len(ticks) > self._code_ticks >= 3:
                self._code_ticks = 0
        elif found.group("line"):
            # Code between single ticks does not go past its line; a stray tick opens nothing.
            if self._code_ticks < 3:
                self._code_ticks = 0
        elif self._code_ticks == 0:
            return self._marker(found)
        return found.group()

    def _marker(self, found: re.Match[str]) -> str:
        numbers = _numbers(found.group("numbers"))
        space = " " if found.group()[0] in " \t" else ""
        if min(numbers) > 999:  # a year, as courts write it
            return f"{space}({found.group('numbers')})"
        known = dict.fromkeys(each for each in numbers if 1 <= each <= self._sources_count)
        return space + "".join(f"[{number}]" for number in known) if known else ""


def _numbers(written: str) -> list[int]:
    """The numbers of `1, 2`, `1 and 3` and of `2-4`."""

    def spelled_out(found: re.Match[str]) -> str:
        first, last = int(found.group(1)), int(found.group(2))
        if not 0 <= last - first <= MAX_RANGE:
            return found.group()
        return " ".join(map(str, range(first, last + 1)))

    return [int(number) for number in re.findall(r"\d+", _RANGE.sub(spelled_out, written))]


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence of an answer as it reads, and the sources that should bear it out.

    `is_marked` says whether the markers are the sentence's own. A sentence without any may be
    borne out by the next ones of its paragraph, so those are tried.
    """

    text: str
    markers: tuple[int, ...]
    is_marked: bool


class ClaimReader:
    """Collects text with canonical markers into claims, as soon as each is complete.

    A heading claims nothing. A sentence that ends in a colon, or says no more than yes, is one
    with the sentence after it.
    """

    def __init__(self, sources_count: int) -> None:
        self._sources_count = sources_count
        self._unfinished = ""
        self._opening: tuple[str, tuple[int, ...]] = ("", ())
        self._unmarked: list[str] = []
        self._last_markers: tuple[int, ...] = ()

    def feed(self, text: str) -> list[Claim]:
        self._unfinished += text
        sentences = split_sentences(self._unfinished)
        if len(sentences) < 2:
            return []
        claims = self._claims(sentences[:-1])
        # The last one may go on, or get its markers, with the next piece.
        self._unfinished = self._unfinished[sentences[-1].start :]
        return claims

    def finish(self) -> list[Claim]:
        claims = self._claims(split_sentences(self._unfinished))
        text, markers = self._opening
        if text:
            claims += self._claim(text, markers)
        return claims + [Claim(each, self._last_markers, False) for each in self._unmarked]

    def _claims(self, sentences: Sequence[Sentence]) -> list[Claim]:
        claims: list[Claim] = []
        for sentence in sentences:
            raw = self._unfinished[sentence.start : sentence.end]
            text = readable(raw, sentence.kind)
            markers = self._markers(raw) if sentence.kind != "code" else ()
            if sentence.kind == "heading" or not text:
                continue
            before, markers_before = self._opening
            self._opening = ("", ())
            text = f"{before} {text}".lstrip()
            markers = tuple(dict.fromkeys((*markers_before, *markers)))
            if sentence.kind != "code" and _only_opens(text):
                self._opening = (text, markers)
            else:
                claims += self._claim(text, markers)
        return claims

    def _markers(self, raw: str) -> tuple[int, ...]:
        numbers = [int(number) for number in _CANONICAL.findall(_INLINE_CODE.sub("", raw))]
        return tuple(dict.fromkeys(each for each in numbers if 1 <= each <= self._sources_count))

    def _claim(self, text: str, markers: tuple[int, ...]) -> list[Claim]:
        if not markers:
            self._unmarked.append(text)
            return []
        claims = [Claim(each, markers, False) for each in self._unmarked]
        self._unmarked = []
        self._last_markers = markers
        return [*claims, Claim(text, markers, True)]


class Draft:
    """An answer as it comes from a model: what to show of it, and what it claims."""

    def __init__(self, sources_count: int) -> None:
        self.text = ""
        self._markers = MarkerReader(sources_count)
        self._claims = ClaimReader(sources_count)

    def add(self, piece: str) -> tuple[str, list[Claim]]:
        """The text that may be shown after this piece, and the claims complete with it."""
        return self._shown(self._markers.feed(piece))

    def finish(self) -> tuple[str, list[Claim]]:
        """The rest of both."""
        shown, claims = self._shown(self._markers.finish())
        return shown, claims + self._claims.finish()

    def _shown(self, text: str) -> tuple[str, list[Claim]]:
        if not self.text:
            text = text.lstrip()
        self.text += text
        return text, self._claims.feed(text) if text else []


def _only_opens(text: str) -> bool:
    return text.endswith(":") or len(content_terms(text)) < 2


def without_markers(text: str) -> str:
    """An answer as a model may see it again: its numbers would name other sources by then."""
    return re.sub(r"\s*\[\d{1,3}\]", "", text)
