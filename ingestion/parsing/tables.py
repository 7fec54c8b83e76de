"""CSV and its relatives as Markdown tables."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from app.errors import DocumentRejected
from ingestion.parsing.decoding import decode
from ingestion.parsing.drafts import Draft
from ingestion.parsing.formats import Format

CELL_CHARS_MAX = 2**30
SAMPLE_ROWS = 50

_DELIMITERS = ",;\t|"


def read_table(content: bytes, source: Format) -> Draft:
    """The rows of a file, the first of them as the header; a list where there are no columns."""
    text = decode(content)
    csv.field_size_limit(CELL_CHARS_MAX)
    try:
        delimiter = _delimiter(text)
        lines = markdown_rows(_rows(text, delimiter)) if delimiter else text.split("\n")
    except csv.Error:
        raise DocumentRejected(f"damaged: it cannot be read as {source.name}") from None
    return Draft(text="\n".join(lines), heading_is_title=False, no_text="the table is empty")


def _rows(text: str, delimiter: str) -> Iterator[list[str]]:
    for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
        if any(cell.strip() for cell in row):
            yield row


def _delimiter(text: str) -> str | None:
    """What parts most rows into the same number of cells, if anything does."""
    best: tuple[int, int, str] | None = None
    for delimiter in _DELIMITERS:
        widths = Counter(len(row) for row in islice(_rows(text, delimiter), SAMPLE_ROWS))
        columns = {width: count for width, count in widths.items() if width > 1}
        count, width = max(((count, width) for width, count in columns.items()), default=(0, 0))
        if 2 * count >= widths.total() and (best is None or (count, width) > best[:2]):
            best = (count, width, delimiter)
    return best[2] if best else None


def markdown_rows(rows: Iterable[Sequence[str]]) -> list[str]:
    """A table as the lines of Markdown, its first row as the header."""
    lines: list[str] = []
    for row in rows:
        cells = [" ".join(cell.replace("|", "\\|").split()) for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
        if len(lines) == 1:
            lines.append(f"|{' --- |' * len(cells)}")
    return lines
