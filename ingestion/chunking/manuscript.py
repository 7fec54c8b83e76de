"""A text on the table: its blocks, the headings above them, and what everything weighs in tokens."""

from collections.abc import Callable, Sequence

from app.embedding.base import Tokenizer
from ingestion.chunking.blocks import Block
from ingestion.chunking.tokens import Scale
from ingestion.types import Chunking, ParsedDocument

Path = tuple[int, ...]
"""The headings above a text, outermost first, as indexes of the blocks that they open."""


class Manuscript:
    """`runs[i]` and `paths[i]` are of block i. All weights are tokens.

    A run is all that reads on: pages that do not, such as slides, are runs of their own.

    A passage weighs `limit` at most, without what it repeats; one under `tiny` is too small to
    stand alone.
    """

    def __init__(
        self,
        parsed: ParsedDocument,
        read: Callable[[int, int], list[Block]],
        tokenizer: Tokenizer,
        chunking: Chunking,
    ) -> None:
        """Take `read`, which gives the blocks of `text[start:end]`."""
        self.text = text = parsed.text
        self.blocks, self.runs = _read(parsed, read)
        blocks = self.blocks
        self.paths = _paths(blocks)
        self.limit = chunking.tokens - chunking.overlap
        self.tiny = self.limit // 8
        self._tokens = chunking.tokens
        self._overlap = chunking.overlap
        named = [index for index, block in enumerate(blocks) if block.heading]
        texts = [text[block.start : block.end] for block in blocks]
        headings = [blocks[index].heading for index in named]
        # All at once: tokenizers are fast on batches and slow on single calls.
        spans = tokenizer.spans([*texts, parsed.title, *headings])
        self.scale = Scale(blocks, spans[: len(blocks)])
        self._title_weight = len(spans[len(blocks)])
        # One more for what stands between two headings.
        weights = [len(own) + 1 for own in spans[len(blocks) + 1 :]]
        self._heading_weights = dict(zip(named, weights, strict=True))

    def room(self, path: Path) -> int:
        """The weight that title and headings leave for what is new in a passage and its context."""
        whole = self._tokens + self._tokens // 4 - self._overlap
        taken = self._title_weight + self._heading_weight(self._shown(path))
        return max(whole - taken, self.limit // 4)

    def headings(self, path: Path) -> tuple[str, ...]:
        """As they stand above a passage."""
        return tuple(
            self.blocks[index].heading for index in self._shown(path) if self.blocks[index].heading
        )

    def _shown(self, path: Path) -> Path:
        """The inner part of a path: one that took half of a passage would crowd out the text."""
        while len(path) > 1 and self._heading_weight(path) > self._tokens // 2:
            path = path[1:]
        return path

    def _heading_weight(self, path: Path) -> int:
        return sum(self._heading_weights.get(index, 0) for index in path)


def _read(
    parsed: ParsedDocument, read: Callable[[int, int], list[Block]]
) -> tuple[list[Block], list[int]]:
    """The blocks of each run by themselves, so that none crosses a page break that means one."""
    starts = [0, *(page.start for page in parsed.pages[1:] if not page.reads_on)]
    ends = [*starts[1:], len(parsed.text)]
    blocks: list[Block] = []
    runs: list[int] = []
    for run, (start, end) in enumerate(zip(starts, ends, strict=True)):
        blocks += read(start, end)
        runs += [run] * (len(blocks) - len(runs))
    return blocks, runs


def common_path(first: Path, second: Path) -> Path:
    shared = 0
    for mine, other in zip(first, second, strict=False):
        if mine != other:
            break
        shared += 1
    return first[:shared]


def _paths(blocks: Sequence[Block]) -> list[Path]:
    """The path of each block; one that has a level opens a section of its own."""
    paths: list[Path] = []
    path: Path = ()
    for index, block in enumerate(blocks):
        if block.level:
            above = [one for one in path if blocks[one].level < block.level]
            path = (*above, index)
        paths.append(path)
    return paths
