"""How much of a long document is embedded again when one paragraph of it changes?

Hypothesis: whatever is done to one paragraph (changed, inserted, removed, at the start, in the
middle, at the end), at most 3 passages of a 500-page text are embedded, because passages begin where
the text says so and not where the one before happened to be full; and in a PDF that is set anew, whose
lines move from page to page behind the edit, because what the end of a page tears is joined again.

Control: windows of the same size over the same texts, one after the other. Those of the edited text
that the first one did not have would all be embedded.

Caveats: prose of random words, in pages of 500 words: with headings, without any heading or list
(where only sentences and paragraphs can say where a passage begins), and as a PDF in one column. What
is counted does not depend on the machine; the times do.

    python benchmarks/reingest.py [--pages 500] [--record]
"""

import argparse
import asyncio
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.config import Settings
from app.db.schema import ready_database
from app.db.session import open_engine
from app.embedding.lazy import LazyEmbedder
from app.embedding.loading import usable_cores
from ingestion.pipeline import DATABASE_CONNECTIONS, Tools, open_tools
from ingestion.runner import Order, Report, sync
from ingestion.sources.base import Item

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "reingest.json"
WORDS_PER_PAGE = 500
WINDOW_WORDS = 70
"""About 200 tokens: the invented words are three tokens each."""

PLACES = ("start", "middle", "end")

Render = Callable[[Sequence[str]], bytes]
OpenPipeline = Callable[[], AbstractAsyncContextManager[Tools]]


class Silence:
    """Nobody watches the progress."""

    def begin(self, items_count: int, bytes_count: int) -> None: ...

    def advance(self, item: Item) -> None: ...


# --- documents ------------------------------------------------------------------------------------


def prose(seed: int, words_count: int, *, with_headings: bool) -> list[str]:
    """Paragraphs of 2 to 7 sentences; with headings, one for about every two pages."""
    rng = random.Random(seed)
    vocabulary = [
        "".join(rng.choices("aeioubdfglmnprst", k=rng.randint(2, 9))) for _ in range(4000)
    ]
    blocks: list[str] = []
    words = since_heading = 0
    while words < words_count:
        if with_headings and (since_heading > 2 * WORDS_PER_PAGE or not blocks):
            blocks.append(f"## {' '.join(rng.choices(vocabulary, k=4)).capitalize()}")
            since_heading = 0
        sentences = [
            rng.choices(vocabulary, k=rng.randint(6, 26)) for _ in range(rng.randint(2, 7))
        ]
        blocks.append(" ".join(f"{' '.join(words).capitalize()}." for words in sentences))
        count = sum(map(len, sentences))
        words += count
        since_heading += count
    return blocks


def as_markdown(blocks: Sequence[str]) -> bytes:
    return ("# A long document\n\n" + "\n\n".join(blocks)).encode()


def as_text(blocks: Sequence[str]) -> bytes:
    return "\n\n".join(blocks).encode()


def as_pdf(blocks: Sequence[str]) -> bytes:
    """Set in lines of up to 90 characters, 46 to a page, an empty one between paragraphs."""
    lines = [line for block in blocks for line in [*_lines(block.lstrip("# "), 90), ""]]
    pages = [lines[start : start + 46] for start in range(0, len(lines), 46)]
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, page in enumerate(pages):
        shown = "\n".join(f"({line}) Tj T*" for line in page)
        stream = f"BT /F1 10 Tf 14 TL 60 780 Td\n{shown}\nET"
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842]"
            f" /Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * number} 0 R >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    written = b"%PDF-1.4\n"
    offsets: list[int] = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(written))
        written += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    return (
        written
        + (
            f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
            f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(written)}\n%%EOF\n"
        ).encode()
    )


def _lines(text: str, width: int) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            yield line
            line = word
        else:
            line = f"{line} {word}".strip()
    yield line


def edits(blocks: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """What was done, and the whole document after it; each begins with the first text."""
    extra = prose(99, 90, with_headings=False)[0]
    for place, index in zip(PLACES, (1, len(blocks) // 2, len(blocks) - 2), strict=True):
        while blocks[index].startswith("#"):
            index += 1
        before, old, after = list(blocks[:index]), blocks[index], list(blocks[index + 1 :])
        yield f"changed at the {place}", [*before, f"{old} {extra[:80]}.", *after]
        yield f"inserted at the {place}", [*before, extra, old, *after]
        yield f"removed at the {place}", [*before, *after]


# --- measuring ------------------------------------------------------------------------------------


def embedded_by_control(first: str, edited: str) -> int:
    known = set(_windows(first))
    return len(set(_windows(edited)) - known)


def _windows(text: str) -> Iterator[tuple[str, ...]]:
    words = text.split()
    for start in range(0, len(words), WINDOW_WORDS):
        yield tuple(words[start : start + WINDOW_WORDS])


async def measure_kind(
    name: str, render: Render, blocks: Sequence[str], path: Path, open_pipeline: OpenPipeline
) -> dict[str, Any]:
    async def ingest(text: Sequence[str]) -> Report:
        path.write_bytes(render(text))
        # Opened anew each time: what was embedded last is remembered for as long as it is open.
        async with open_pipeline() as tools:
            report = await sync(Order([path], "benchmark"), tools, Silence())
        if report.failures:
            raise SystemExit(f"{report.failures[0].path}: {report.failures[0].reason}")
        return report

    first = await ingest(blocks)
    rows: list[dict[str, Any]] = []
    for what, edited in edits(blocks):
        again = await ingest(edited)
        row = {
            "edit": what,
            "passages": again.chunks,
            "embedded": again.embedded,
            "seconds": round(again.took_seconds, 2),
        }
        if not name.endswith(".pdf"):
            row["embedded_by_control"] = embedded_by_control(
                render(blocks).decode(), render(edited).decode()
            )
        await ingest(blocks)
        rows.append(row)
        print(name, json.dumps(row), flush=True)
    return {
        "passages": first.chunks,
        "first_seconds": round(first.took_seconds, 1),
        "most_embedded": max(row["embedded"] for row in rows),
        "edits": rows,
    }


async def measure(url: str, settings: Settings, pages: int, scratch: Path) -> dict[str, Any]:
    engine = open_engine(settings, url, pool_size=DATABASE_CONNECTIONS + 1)
    embedder = LazyEmbedder(settings)
    words_count = pages * WORDS_PER_PAGE
    kinds: list[tuple[str, Render, bool]] = [
        ("headings.md", as_markdown, True),
        ("plain.txt", as_text, False),
        ("printed.pdf", as_pdf, True),
    ]
    results: dict[str, Any] = {}
    try:
        for seed, (name, render, with_headings) in enumerate(kinds):
            blocks = prose(seed, words_count, with_headings=with_headings)
            results[name] = await measure_kind(
                name, render, blocks, scratch / name, lambda: open_tools(settings, engine, embedder)
            )
    finally:
        await engine.dispose()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pages", type=int, default=500, help=f"of {WORDS_PER_PAGE} words each")
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.relative_to(ROOT)}")
    arguments = parser.parse_args()
    load_average = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as scratch:
        settings = Settings(home=Path(scratch) / "home")
        with ready_database(settings) as url:
            measured = asyncio.run(measure(url, settings, arguments.pages, Path(scratch)))
    result = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": usable_cores(), "load_average_before": load_average},
        "pages": arguments.pages,
        "documents": measured,
    }
    print(json.dumps(result, indent=2))
    if arguments.record:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
