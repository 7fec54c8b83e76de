"""How often would a paraphrase get the answer to another question?

Hypothesis: of the pairs of questions that may share an answer, at most 1 % ask for different things
(upper bound, one-sided, 95 %). Control: nearness of their vectors alone.

Method: labelled pairs of questions, as `{"text_a", "text_b", "label"}` a line (Quora's, as used by
GPTCache). The lists of words and the default threshold were chosen on the pairs of even number;
what is printed first is of the odd ones. Bounds are those of Clopper and Pearson.

Caveats: labels are wrong in places, which bounds what can be shown by them. The row `same words` is
of pairs that differ in case, white space and punctuation alone: what is labelled different there is
noise, for any method. `--show` prints the accepted pairs that are labelled different, to be read.
The pairs have no evidence: in the service both wordings must also have found the same passages in
the same order, which makes it stricter; see `paraphrase_evidence.py`.

    python benchmarks/paraphrases.py pairs.jsonl [--vectors FILE] [--show] [--record]
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app.cache.agreement import Wording, disagreement
from app.config import Settings
from app.embedding.loading import open_embedder
from app.experiments.intervals import Rate, of_rate_exactly

RESULTS = ROOT / "benchmarks" / "results" / "paraphrases.json"
COSINE_ALONE = (0.8, 0.9, 0.95)
THRESHOLDS = (0.8, 0.9, 0.92, 0.95, 0.97, 0.98)
ONE_SIDED = 0.9
"""The confidence of an interval each of whose bounds holds in 95 % of all cases."""
EMBEDDED_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Pair:
    one: str
    other: str
    is_same: bool
    cosine: float
    agrees: bool
    has_same_words: bool


@dataclass(frozen=True, slots=True)
class Row:
    """Of the pairs that a method accepts; shares from 0 to 1."""

    method: str
    accepted: int
    false: int
    false_share: float
    false_at_most: float
    recall: float


def read_pairs(file: Path, vectors_file: Path | None) -> list[Pair]:
    given = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    texts = sorted({text for one in given for text in (one["text_a"], one["text_b"])})
    vectors = dict(zip(texts, _vectors(texts, vectors_file), strict=True))
    pairs: list[Pair] = []
    for line in given:
        one, other = line["text_a"], line["text_b"]
        pairs.append(
            Pair(
                one,
                other,
                is_same=bool(line["label"]),
                cosine=float(vectors[one] @ vectors[other]),
                agrees=disagreement(Wording(one), Wording(other)) is None,
                has_same_words=_bare(one) == _bare(other),
            )
        )
    return pairs


def _vectors(texts: Sequence[str], file: Path | None) -> Any:
    if file is not None and file.exists():
        kept = np.load(file)
        if len(kept) != len(texts):
            raise SystemExit(f"{file} holds the vectors of other questions.")
        return kept
    embedder = open_embedder(Settings())
    made = np.concatenate(
        [
            embedder.embed(texts[place : place + EMBEDDED_AT_ONCE], "query")
            for place in range(0, len(texts), EMBEDDED_AT_ONCE)
        ]
    )
    if file is not None:
        np.save(file, made)
    return made


def _bare(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def rows_of(pairs: Sequence[Pair]) -> list[Row]:
    same = sum(pair.is_same for pair in pairs)

    def row(method: str, accepted: Sequence[Pair]) -> Row:
        false = sum(not pair.is_same for pair in accepted)
        interval = of_rate_exactly(Rate(false, len(accepted)), ONE_SIDED)
        return Row(
            method,
            len(accepted),
            false,
            round(interval.estimate, 4),
            round(interval.high, 4),
            round((len(accepted) - false) / same, 4),
        )

    return [
        *(row(f"cosine {at}", [one for one in pairs if one.cosine >= at]) for at in COSINE_ALONE),
        *(row(f"ours {at}", accepted_of(pairs, at)) for at in THRESHOLDS),
        row("same words", [one for one in pairs if one.has_same_words]),
    ]


def accepted_of(pairs: Sequence[Pair], threshold: float) -> list[Pair]:
    return [one for one in pairs if one.agrees and one.cosine >= threshold]


def print_table(title: str, rows: Sequence[Row]) -> None:
    print(f"{title}\n{'':14}{'accepted':>10}{'false':>8}{'share':>9}{'at most':>9}{'recall':>9}")
    for one in rows:
        shares = "".join(
            f"{share:9.1%}" for share in (one.false_share, one.false_at_most, one.recall)
        )
        print(f"{one.method:14}{one.accepted:10}{one.false:8}{shares}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--vectors", type=Path, help="where vectors are kept for the next run")
    parser.add_argument("--show", action="store_true", help="accepted pairs labelled different")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    pairs = read_pairs(given.pairs, given.vectors)
    halves = {"reported": pairs[1::2], "chosen_on": pairs[0::2]}
    rows = {name: rows_of(half) for name, half in halves.items()}
    for name, half in halves.items():
        print_table(f"\n{len(half):,} pairs ({name.replace('_', ' ')})", rows[name])
    default: float = Settings.model_fields["cache_paraphrase_similarity"].default
    doubtful = [one for one in accepted_of(halves["reported"], default) if not one.is_same]
    if given.show:
        print(f"\nAccepted at {default} of the reported half, and labelled different:")
        for one in doubtful:
            print(f"{one.cosine:.3f}  {one.one}  ||  {one.other}")
    if given.record:
        report = {
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "pairs": len(pairs),
            "same": sum(one.is_same for one in pairs),
            "model": Settings().embedding_model,
            "default_threshold": default,
            "rows": {
                name: [{field: getattr(one, field) for field in Row.__slots__} for one in found]
                for name, found in rows.items()
            },
            "labelled_different_at_the_default": [[one.one, one.other] for one in doubtful],
        }
        RESULTS.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
