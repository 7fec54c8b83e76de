"""Passages in the making: what every strategy hands over."""

from dataclasses import dataclass

from ingestion.chunking.manuscript import Manuscript, Path


@dataclass(frozen=True, slots=True)
class Piece:
    """`text[start:end]` under the headings of `path`, with the text repeated above it.

    `follows` when it goes on with what is before it, and so may repeat the end of that.
    `repeats_from` is the earliest place that it may repeat.
    """

    start: int
    end: int
    path: Path = ()
    context: str = ""
    follows: bool = True
    repeats_from: int = 0


Cut = tuple[Manuscript, list[Piece]]
"""What a strategy makes of a document: its pieces, in order, and the text that they are of."""
