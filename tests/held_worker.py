"""A worker in a process of its own, whose model computes only when it is told to.

It prints `asked` whenever the model is wanted, and reads a line before it computes.
Arguments: the database's URL, FOOTNOTE_HOME, and constants of `app.jobs` as a JSON object.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from app import jobs
from app.config import Settings
from app.embedding.base import TextKind, Vectors
from ingestion.worker import run_worker
from tests.doubles.word_embedder import WordEmbedder


class ObedientEmbedder(WordEmbedder):
    def embed(self, texts: Sequence[str], kind: TextKind) -> Vectors:
        sys.stdout.write("asked\n")
        sys.stdout.flush()
        sys.stdin.readline()
        return super().embed(texts, kind)


def main() -> None:
    url, home, constants = sys.argv[1:]
    for name, value in json.loads(constants).items():
        assert hasattr(jobs, name)
        setattr(jobs, name, value)
    settings = Settings(home=Path(home))
    asyncio.run(run_worker(settings, url, concurrency=2, embedder=ObedientEmbedder()))


if __name__ == "__main__":
    main()
