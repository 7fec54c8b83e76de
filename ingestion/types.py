"""The pipeline's own words. This file imports nothing of ours."""

from dataclasses import dataclass, field
from typing import Any, Literal

ChunkingStrategy = Literal["structure", "recursive", "fixed"]

Markup = Literal["markdown", "rst", "org", "plain", "code"]
"""How a parsed text shows its structure: where its headings, lists and tables can be found."""


CodeLanguage = Literal[
    "python", "javascript", "typescript", "tsx", "go", "rust", "java", "c", "cpp", "c_sharp",
    "ruby", "php", "bash",
]  # fmt: skip
"""The programming languages whose functions can be told apart."""


@dataclass(frozen=True, slots=True)
class Page:
    """Page `number` (from 1, counted one by one) covers `text[start:end]` of the document.

    `reads_on` when its text goes on with that of the page before, whose end then says nothing.
    """

    number: int
    start: int
    end: int
    reads_on: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A definition in code, from `start` to where the next one begins; level 1 is outermost.

    `name` is empty for what stands between definitions.
    """

    start: int
    level: int
    name: str


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    """What a parser made of a file.

    `text` is in `markup`, without NUL or lone surrogates; every offset in Footnote counts its
    characters. `pages` is empty when the format has no pages. `language` is a Snowball name, or
    "simple" for a language without a stemmer. `metadata` holds strings, numbers, booleans and
    lists of strings only. `code_language` is that of a text whose markup is "code", where it is
    one of those known; `outline` are its functions, classes and the like, in order, where they
    could be told apart. `personal_data` counts what a scan found, by kind; None without one.
    """

    text: str
    title: str
    media_type: str
    pages: tuple[Page, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    language: str = "english"
    warnings: tuple[str, ...] = ()
    markup: Markup = "markdown"
    code_language: CodeLanguage | None = None
    outline: tuple[Section, ...] = ()
    personal_data: dict[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage: `parsed.text[start:end] == text`, exactly.

    `heading` is the path of headings above it, outermost first. `context` is text repeated for
    the models but not part of the passage, such as the header row of a table that was split.
    `page` is the one that it begins on, `page_breaks` are the places in `text`, ascending, where
    the next ones begin.
    """

    ordinal: int
    text: str
    start: int
    end: int
    heading: tuple[str, ...]
    page: int | None
    tokens: int
    context: str = ""
    page_breaks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunking:
    """How a text is cut: into passages of `tokens` at most, each repeating the last `overlap`."""

    tokens: int = 200
    overlap: int = 0
    strategy: ChunkingStrategy = "structure"


def embedded_text(title: str, chunk: Chunk) -> str:
    """What both search legs see of a chunk: title and heading path above the passage itself."""
    lines = [heading_path(title, chunk), chunk.context, chunk.text]
    return "\n".join(line for line in lines if line)


def heading_path(title: str, chunk: Chunk) -> str:
    """Title and headings of a chunk in one line; what they say counts twice among keywords."""
    path = [title, *(part for part in chunk.heading if part != title)]
    return " > ".join(part for part in path if part)
