"""Do two wordings of a question find the same passages, in the same order?

Hypothesis: of the wordings that may share an answer, four in five find the same passages in the
same order, so that demanding just that leaves most of what there is to gain.

Method: questions of a judged set in BEIR's form, each beside wordings of it that differ in what the
cache takes for nothing (an article, politeness, `which` for `what`, `how can I` for `how do I`). Both
are searched for in a service of its own, as an answer's passages are.

Caveats: the wordings are made by rule, not by people, whose wordings differ more; and each passage
of the set is a document, so there are no neighbours.

    python benchmarks/paraphrase_evidence.py SET --home NEW [--record]
"""

import argparse
import asyncio
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app.cache.agreement import Wording, disagreement
from app.config import Settings
from benchmarks.cache_replay import COLLECTION, ingest, write_documents
from benchmarks.search import RESULTS, Client
from benchmarks.search_corpus import running_service

REWORDED = {
    "politeness": (r"^", "Please tell me, "),
    "without the": (r"\bthe ", ""),
    "which for what": (r"^What\b", "Which"),
    "can for do": (r"\b([Hh]ow) do I\b", r"\1 can I"),
    "contraction": (r"^What is\b", "What's"),
    "are some": (r"^What are\b", "What are some"),
}


def wordings_of(question: str) -> Iterator[tuple[str, str]]:
    for kind, (pattern, by) in REWORDED.items():
        other = re.sub(pattern, by, question, count=1)
        if other != question and disagreement(Wording(question), Wording(other)) is None:
            yield kind, other


async def measure(given: Path, home: Path) -> dict[str, Any]:
    folder, footnote_home = home / "documents", home / "footnote"
    write_documents(given, folder)
    await asyncio.to_thread(ingest, folder, footnote_home)
    lines = (given / "queries.jsonl").read_text("utf-8").splitlines()
    questions = sorted({json.loads(line)["text"] for line in lines})
    passages = Settings.model_fields["answer_passages"].default
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in REWORDED}
    async with running_service(footnote_home, cached=True) as url:
        client = Client(url, "")
        await client.open()

        async def found(text: str) -> list[int]:
            body = {"query": text, "collection": COLLECTION, "limit": passages}
            reply = await client.request("POST", "/api/search", json.dumps(body).encode())
            return [hit["chunk_id"] for hit in json.loads(reply)["hits"]]

        for question in questions:
            for kind, other in wordings_of(question):
                one, two = await found(question), await found(other)
                counts[kind]["pairs"] += 1
                counts[kind]["same order"] += one == two
                counts[kind]["same passages"] += set(one) == set(two)
        client.close()
    total = sum(counts.values(), Counter[str]())
    return {
        "set": given.name,
        "questions": len(questions),
        "passages": passages,
        "by_wording": {kind: _shares(one) for kind, one in counts.items() if one},
        "all": _shares(total),
    }


def _shares(counts: Counter[str]) -> dict[str, float]:
    pairs = counts["pairs"]
    return {
        "pairs": pairs,
        "same_order": round(counts["same order"] / pairs, 4),
        "same_passages": round(counts["same passages"] / pairs, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("set", type=Path, help="a folder with corpus.jsonl and queries.jsonl")
    parser.add_argument("--home", type=Path, required=True, help="a folder that is not there yet")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    if given.home.exists():
        parser.error(f"{given.home} is there already")
    report = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **asyncio.run(measure(given.set, given.home)),
    }
    print(json.dumps(report, indent=2))
    if given.record:
        file = RESULTS / "paraphrase_evidence.json"
        file.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
