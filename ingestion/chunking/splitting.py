"""Split a parsed text into chunks that read well and that the model sees whole."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from functools import reduce

from app.embedding.base import Tokenizer
from ingestion.chunking.blocks import Block, read_blocks
from ingestion.chunking.cutting import Sizes, cut
from ingestion.chunking.headings import (
    Path,
    Section,
    Smallness,
    common_path,
    gather,
    read_sections,
)
from ingestion.chunking.tables import TableHeaders
from ingestion.chunking.tokens import Scale
from ingestion.markup import HEADING_CHARS_MAX
from ingestion.types import Chunk, Chunking, ParsedDocument

CHUNKING_VERSION = "1"
"""Changes with whatever changes the chunks of a text, so that documents are chunked anew."""

_DEFAULT = Chunking()


def split(
    parsed: ParsedDocument, tokenizer: Tokenizer, chunking: Chunking = _DEFAULT
) -> list[Chunk]:
    """Passages of about `chunking.tokens` tokens, in order, that between them hold all of the text.

    A passage with its title, heading path and context (see `embedded_text`) takes at most a
    quarter more, so that a model of 256 tokens reads all of it at 200.
    """
    return _Splitter(parsed, tokenizer, chunking.tokens).chunks()


class _Splitter:
    def __init__(self, parsed: ParsedDocument, tokenizer: Tokenizer, chunk_tokens: int) -> None:
        self._parsed = parsed
        self._text = parsed.text
        self._chunk_tokens = chunk_tokens
        self._small, self._tiny = chunk_tokens // 2, chunk_tokens // 8
        self._page_starts = [page.start for page in parsed.pages]
        self._blocks, block_pages = self._read()
        texts = [self._text[block.start : block.end] for block in self._blocks]
        # All at once: tokenizers are fast on batches and slow on single calls.
        *spans, title_spans = tokenizer.spans([*texts, parsed.title])
        self._title_weight = len(title_spans)
        self._scale = Scale(self._blocks, spans)
        self._tables = TableHeaders(self._text, self._blocks, self._scale)
        self._sections = read_sections(self._blocks, block_pages)
        self._starts = [block.start for block in self._blocks]
        self._paths = [
            section.path for section in self._sections for _ in range(section.first, section.last)
        ]

    def _read(self) -> tuple[list[Block], list[int]]:
        """The blocks of each page by themselves, so that none crosses a page break."""
        starts = [0, *self._page_starts[1:]]
        ends = [*starts[1:], len(self._text)]
        blocks: list[Block] = []
        pages: list[int] = []
        for page, (start, end) in enumerate(zip(starts, ends, strict=True)):
            blocks += read_blocks(self._text, self._parsed.markup, start, end)
            pages += [page] * (len(blocks) - len(pages))
        return blocks, pages

    def chunks(self) -> list[Chunk]:
        sizes = Smallness(
            limit=self._chunk_tokens,
            limit_hard=self._chunk_tokens + self._tiny,
            small=self._small,
            tiny=self._tiny,
        )
        chunks: list[Chunk] = []
        for group in gather(self._sections, self._blocks, self._scale, sizes):
            for start, end, context in self._pieces(group):
                text = self._text[start:end]
                start += len(text) - len(text.lstrip())
                end = start + len(text.strip())
                if start < end:
                    chunks.append(self._chunk(len(chunks), start, end, context))
        return chunks

    def _pieces(self, group: Section) -> Iterator[tuple[int, int, str]]:
        """Start, end and context of each piece of a group."""
        blocks = self._blocks[group.first : group.last]
        room = self._room(set(self._paths[group.first : group.last]))
        limit = min(room, self._chunk_tokens)
        position, first = blocks[0].start, 0
        while first < len(blocks):
            context = self._tables.context(position, limit)
            sizes = Sizes(limit - context.weight, room - context.weight, self._small, self._tiny)
            end = cut(self._text, self._scale, blocks, first, position, sizes)
            yield position, end, context.text
            position = end
            while first < len(blocks) and blocks[first].end <= position:
                first += 1

    def _chunk(self, ordinal: int, start: int, end: int, context: str) -> Chunk:
        path = self._shown(self._path(start, end))
        headings = [self._blocks[index].heading for index in path]
        return Chunk(
            ordinal=ordinal,
            text=self._text[start:end],
            start=start,
            end=end,
            heading=tuple(heading for heading in headings if heading),
            page=self._page(start),
            tokens=self._scale.weigh(start, end),
            context=context,
        )

    def _path(self, start: int, end: int) -> Path:
        """The headings that all of a passage stands under, the one that it opens with included."""
        first = bisect_right(self._starts, start) - 1
        last = bisect_left(self._starts, end)
        paths = [
            self._paths[index]
            for index in range(first, last)
            if self._blocks[index].kind != "heading"
        ]
        return reduce(common_path, paths) if paths else self._paths[last - 1]

    def _page(self, start: int) -> int | None:
        if not self._parsed.pages:
            return None
        return self._parsed.pages[max(bisect_right(self._page_starts, start) - 1, 0)].number

    def _room(self, paths: Iterable[Path]) -> int:
        """The tokens that the heaviest of these heading paths leaves for a passage under it."""
        heaviest = max(sum(map(self._heading_weight, self._shown(path))) for path in paths)
        whole = self._chunk_tokens + self._chunk_tokens // 4
        return max(whole - self._title_weight - heaviest, self._chunk_tokens // 4)

    def _shown(self, path: Path) -> Path:
        """The inner part of a path: one that took half of a chunk would crowd out the passage."""
        while len(path) > 1 and sum(map(self._heading_weight, path)) > self._chunk_tokens // 2:
            path = path[1:]
        return path

    def _heading_weight(self, index: int) -> int:
        weight = self._scale.weigh(self._blocks[index].start, self._blocks[index].end)
        return min(weight, HEADING_CHARS_MAX)
