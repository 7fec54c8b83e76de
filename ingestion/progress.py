"""The progress bar of a run: how far it is, how fast, and how long it still takes."""

from collections.abc import Generator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ingestion.pipeline import Tools
from ingestion.sources.base import Item

ITEM_COST_BYTES = 4096
"""What an item costs besides its bytes, so that many small ones are not taken for nothing."""


class ProgressBar:
    """Counts items for people, and bytes for the time left, because items differ in size."""

    def __init__(self, shown: Progress, task: TaskID, tools: Tools) -> None:
        self._shown = shown
        self._task = task
        self._tools = tools
        self._chunks_before = tools.chunks_count
        self._started = monotonic()
        self._items_count = self._items_done = 0

    def begin(self, items_count: int, bytes_count: int) -> None:
        self._items_count = items_count
        self._shown.update(self._task, total=bytes_count + items_count * ITEM_COST_BYTES)

    def advance(self, item: Item) -> None:
        self._items_done += 1
        seconds = max(0.001, monotonic() - self._started)
        chunks_per_second = (self._tools.chunks_count - self._chunks_before) / seconds
        self._shown.update(
            self._task,
            advance=(item.size_bytes or 0) + ITEM_COST_BYTES,
            state=f"{self._items_done}/{self._items_count} documents"
            f"  {self._items_done / seconds:.1f} documents/s  {chunks_per_second:.0f} chunks/s",
        )


@contextmanager
def shown_progress(tools: Tools, *, is_quiet: bool) -> Generator[ProgressBar]:
    """A bar on standard error, gone when the run ends; nothing where nobody watches."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("ingesting"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=is_quiet or not console.is_terminal,
    ) as shown:
        yield ProgressBar(shown, shown.add_task("ingesting", total=None, state=""), tools)
