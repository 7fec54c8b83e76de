"""Can any file hang, kill, escape from or exhaust what reads documents?

Hypothesis: of thousands of damaged, odd and hostile files none takes longer than the limit allows,
none ends the process that asks for it to be read, none writes outside the parser's own folder or
reaches a server, and the asking process grows by no more than 50 MB beyond the file and its text.

Control: a small text is read before, between and after; a parser that has been harmed would not
read it. A server listens where the hostile files say that they call, and counts who does.

Caveats: every file of the folders is read under its own name, and again without one, so that content
alone decides. The bombs are made by another process, whose memory does not count. Names that lead
out of a folder all hold one word, which is looked for in the whole file system afterwards; what else
appears in the temporary, home and working folders is listed too, and on a busy machine is not ours.

    python benchmarks/hostile.py FOLDER… [--limit-seconds 60] [--files N] [--record]
"""

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from app.config import Settings
from app.errors import DocumentRejected
from ingestion.parsing.sandbox import ParserPool

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.bombs import ESCAPE

RESULTS = ROOT / "benchmarks" / "results" / "hostile.json"
CONTROL = b"Thirty days."
MB = 1024 * 1024
SAMPLE_SECONDS = 0.005
SLACK_SECONDS = 10.0
"""What may pass beyond the limit: ending a child and starting another."""


class Memory:
    """The most that this process has held since `restart`."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._peak = 0
        self._ended = threading.Event()
        threading.Thread(target=self._sample, daemon=True).start()

    def held(self) -> int:
        return self._process.memory_info().rss

    def restart(self) -> None:
        self._peak = self.held()

    def peak(self) -> int:
        return max(self._peak, self.held())

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._peak = max(self._peak, self.held())


class Listener:
    """Counts who connects."""

    def __init__(self) -> None:
        self.calls = 0
        self.url = ""

    async def open(self) -> None:
        server = await asyncio.start_server(self._called, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    def _called(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.calls += 1
        writer.close()


def files_in(folders: Sequence[Path], count: int | None) -> list[tuple[Path, str]]:
    """Every file under its own name and under none; `count` of them, the same ones each time."""
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    if count is not None:
        paths = sorted(random.Random(0).sample(paths, min(count, len(paths))))
    return [(path, name) for path in paths for name in (path.name, "file")]


def kind_of(reason: str) -> str:
    """Reasons without what differs from file to file."""
    return re.sub(r"\d[\d.,]*", "#", re.sub(r"\(.*\)|, but its content is .*", "…", reason))


def entries(folder: Path) -> set[str]:
    try:
        return {entry.path for entry in os.scandir(folder)}
    except OSError:
        return set()


def escaped() -> Iterator[str]:
    """Whatever bears the word of the escaping files, anywhere."""
    for folder, folders, files in os.walk("/"):
        folders[:] = [name for name in folders if f"{folder}/{name}" not in ("//proc", "//sys")]
        yield from (f"{folder}/{name}" for name in (*folders, *files) if ESCAPE in name)


async def measure(
    folders: Sequence[Path], limit_seconds: float, count: int | None
) -> dict[str, Any]:
    listener, memory = Listener(), Memory()
    await listener.open()
    with tempfile.TemporaryDirectory(prefix="hostile-") as scratch:
        bombs, temporary = Path(scratch, "bombs"), Path(scratch, "tmp")
        temporary.mkdir()
        making = (sys.executable, "-m", "tests.bombs", str(bombs), listener.url)
        await asyncio.to_thread(subprocess.run, making, check=True, cwd=ROOT)
        tempfile.tempdir = str(temporary)
        watched = [Path("/tmp"), Path.home(), Path.cwd(), ROOT]  # noqa: S108 - to be watched
        before = {path: entries(path) for path in watched}
        pool = ParserPool(Settings(home=Path(scratch), parse_timeout_seconds=limit_seconds))
        everything = files_in(folders, count) + files_in([bombs], None)
        result = await read_all(pool, everything, memory)
        await pool.close()
        result["over_limit"] = [
            each for each in result["slowest"] if each[1] > limit_seconds + SLACK_SECONDS
        ]
        result["left_in_temporary_folder"] = sorted(entries(temporary))
        result["appeared_elsewhere"] = sorted(
            Path(entry).name for path in watched for entry in entries(path) - before[path]
        )
        result["escaped"] = sorted(escaped())
        result["calls_to_the_server"] = listener.calls
        tempfile.tempdir = None
    return result


async def read_all(
    pool: ParserPool, files: Sequence[tuple[Path, str]], memory: Memory
) -> dict[str, Any]:
    reasons, seconds, growth = Counter[str](), dict[str, float](), dict[str, float]()
    await control(pool)
    held_first = memory.held()
    for number, (path, name) in enumerate(files):
        content = await asyncio.to_thread(path.read_bytes)
        label = f"{path.name} as {name}" if name != path.name else path.name
        memory.restart()
        held, started = memory.held(), time.perf_counter()
        text_bytes = 0
        try:
            parsed = await pool.parse(content, name)
        except DocumentRejected as rejected:
            reasons[kind_of(rejected.reason)] += 1
        else:
            reasons["ready"] += 1
            text_bytes = sys.getsizeof(parsed.text)
            del parsed
        seconds[label] = round(time.perf_counter() - started, 2)
        growth[label] = round((memory.peak() - held - text_bytes) / MB, 1)
        if number % 50 == 0:
            await control(pool)
    await control(pool)
    return {
        "files": len(files),
        "ready": reasons.pop("ready", 0),
        "failed": dict(reasons.most_common()),
        "slowest": most(seconds),
        "parent_growth_mb": most(growth),
        "parent_grew_in_all_mb": round((memory.held() - held_first) / MB, 1),
    }


async def control(pool: ParserPool) -> None:
    assert (await pool.parse(CONTROL, "control.txt")).text == CONTROL.decode()


def most(figures: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(figures.items(), key=lambda item: -item[1])[:8]


def show(result: dict[str, Any]) -> None:
    print(f"files read                    {result['files']}")
    print(f"  ready                       {result['ready']}")
    for reason, count in result["failed"].items():
        print(f"  {count:5}  {reason}")
    print("slowest, seconds")
    for name, seconds in result["slowest"]:
        print(f"  {seconds:7.2f}  {name}")
    print("growth of the parent beyond file and text, MB")
    for name, megabytes in result["parent_growth_mb"]:
        print(f"  {megabytes:7.1f}  {name}")
    print(f"growth over the whole run, MB {result['parent_grew_in_all_mb']}")
    for title in ("over_limit", "escaped", "left_in_temporary_folder", "appeared_elsewhere"):
        print(f"{title.replace('_', ' '):<29} {len(result[title])}  {result[title][:5]}")
    print(f"calls to the server           {result['calls_to_the_server']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="*", help="hostile files beside the bombs")
    parser.add_argument("--limit-seconds", type=float, default=60.0)
    parser.add_argument("--files", type=int, help="only so many of the folders' files")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    result = asyncio.run(measure(options.folders, options.limit_seconds, options.files))
    show(result)
    if options.record:
        machine = {"python": sys.version.split()[0], "cores": os.cpu_count()}
        recorded = {"at": datetime.now(UTC).isoformat(), "machine": machine, **result}
        RESULTS.write_text(json.dumps(recorded, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
