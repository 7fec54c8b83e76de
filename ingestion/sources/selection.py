"""Patterns that choose what to ingest, in the syntax of .gitignore, whatever the source."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import pathspec


@dataclass(frozen=True, slots=True)
class Selection:
    """Patterns of the command line, relative to each root; paths have `/` between their parts."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    @property
    def is_everything(self) -> bool:
        return not self.include and not self.exclude

    def check(self) -> None:
        """Raise ValueError for a pattern that makes no sense."""
        _specs(tuple(self.include), tuple(self.exclude))

    def reaches(self, relative: str) -> bool:
        """Whether a walk with these patterns would come to this path and take it."""
        parts = relative.split("/")
        folders = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
        return all(map(self.descends, folders)) and self.takes(relative)

    def takes(self, relative: str) -> bool:
        if self.is_everything:
            return True
        included, excluded = _specs(tuple(self.include), tuple(self.exclude))
        return (not self.include or included.match_file(relative)) and not excluded.match_file(
            relative
        )

    def descends(self, relative: str) -> bool:
        """Whether the folder at this path may hold something to take."""
        if not self.exclude:
            return True
        return not _specs(tuple(self.include), tuple(self.exclude))[1].match_file(f"{relative}/")


@lru_cache(maxsize=8)
def _specs(
    include: tuple[str, ...], exclude: tuple[str, ...]
) -> tuple[pathspec.GitIgnoreSpec, pathspec.GitIgnoreSpec]:
    return pathspec.GitIgnoreSpec.from_lines(include), pathspec.GitIgnoreSpec.from_lines(exclude)
