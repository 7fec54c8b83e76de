"""Rankings and judgements in the files of trec_eval, for other tools."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from evaluation.run import Outcome

# What the fields of these files are parted by is written as in URLs; all else stays readable.
_SAFE = "".join(chr(code) for code in range(33, 127) if chr(code) != "%")


def export(outcome: Outcome, folder: Path) -> list[Path]:
    """`NAME.qrels`, and `NAME.MODE.run` for each mode; what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [_write(folder / f"{outcome.dataset}.qrels", _qrels(outcome))]
    for mode, ranking in outcome.rankings.items():
        path = folder / f"{outcome.dataset}.{mode}.run"
        written.append(_write(path, _run(ranking, f"footnote-{mode}")))
    return written


def _qrels(outcome: Outcome) -> Iterator[str]:
    for query_id, grades in outcome.judgements.items():
        for unit, grade in grades.items():
            yield f"{field(query_id)} 0 {field(unit)} {grade}"


def _run(ranking: dict[str, list[str]], tag: str) -> Iterator[str]:
    """The score is the number of places to the end, because trec_eval reads nothing else."""
    for query_id, units in ranking.items():
        for place, unit in enumerate(units):
            score = len(units) - place
            yield f"{field(query_id)} Q0 {field(unit)} {place + 1} {score} {tag}"


def field(name: str) -> str:
    """One word: whatever else a name may hold."""
    return quote(name, safe=_SAFE) or "%"


def _write(path: Path, lines: Iterator[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path
