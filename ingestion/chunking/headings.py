"""Sections: what stands under each heading, and which small ones are taken together."""

from collections.abc import Sequence
from dataclasses import dataclass

from ingestion.chunking.blocks import Block
from ingestion.chunking.tokens import Scale

Path = tuple[int, ...]
"""The headings above a text, outermost first, as indexes of their blocks."""


@dataclass(frozen=True, slots=True)
class Section:
    """`blocks[first:last]`: a heading, or none, and what follows up to the next heading or page.

    `headings_only` when there is nothing under the heading.
    """

    first: int
    last: int
    path: Path
    page: int
    headings_only: bool


@dataclass(frozen=True, slots=True)
class Smallness:
    """Weights below which a section is too small to stand alone.

    A `small` one joins its relatives while together they stay within `limit`, a `tiny` one even
    beyond, within `limit_hard`, and across a page break.
    """

    limit: int
    limit_hard: int
    small: int
    tiny: int


def common_path(first: Path, second: Path) -> Path:
    shared = 0
    for mine, other in zip(first, second, strict=False):
        if mine != other:
            break
        shared += 1
    return first[:shared]


def read_sections(blocks: Sequence[Block], pages: Sequence[int]) -> list[Section]:
    """One section per heading and page; `pages[i]` is the page of block i."""
    sections: list[Section] = []
    path: list[int] = []
    first = 0
    for index, block in enumerate(blocks):
        if index > first and (block.kind == "heading" or pages[index] != pages[first]):
            sections.append(_section(blocks, pages, first, index, path))
            first = index
        if block.kind == "heading":
            while path and blocks[path[-1]].level >= block.level:
                path.pop()
            path.append(index)
    if blocks:
        sections.append(_section(blocks, pages, first, len(blocks), path))
    return sections


def _section(
    blocks: Sequence[Block], pages: Sequence[int], first: int, last: int, path: Sequence[int]
) -> Section:
    headings_only = last - first == 1 and blocks[first].kind == "heading"
    return Section(first, last, tuple(path), pages[first], headings_only)


def gather(
    sections: Sequence[Section], blocks: Sequence[Block], scale: Scale, sizes: Smallness
) -> list[Section]:
    """Take small sections together with the sibling, parent or child beside them."""
    gathered: list[Section] = []
    for section in sections:
        if gathered and _belong_together(gathered[-1], section, blocks, scale, sizes):
            before = gathered.pop()
            both_bare = before.headings_only and section.headings_only
            # What a heading without text opens is the section under it.
            path = section.path if before.headings_only else common_path(before.path, section.path)
            section = Section(before.first, section.last, path, before.page, both_bare)
        gathered.append(section)
    return gathered


def _belong_together(
    before: Section, after: Section, blocks: Sequence[Block], scale: Scale, sizes: Smallness
) -> bool:
    shared = len(common_path(before.path, after.path))
    if before.headings_only and shared == len(before.path):
        return True
    if shared < max(len(before.path), len(after.path)) - 1:
        return False
    weights = [
        scale.weigh(blocks[each.first].start, blocks[each.last - 1].end) for each in (before, after)
    ]
    if min(weights) < sizes.tiny:
        return sum(weights) <= sizes.limit_hard
    same_page = before.page == after.page
    return same_page and min(weights) < sizes.small and sum(weights) <= sizes.limit
