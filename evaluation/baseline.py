"""An evaluation kept in a file, what came of it since, and whether that is good enough."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from app.errors import InvalidInput
from evaluation.metrics import MEASURES, measure_name
from evaluation.records import outcome_record
from evaluation.run import Outcome
from evaluation.statistics import Estimate, estimates

FORM = 1

_FORM = "Give a file that `footnote eval run --save FILE` wrote."


@dataclass(frozen=True, slots=True)
class Change:
    """What a mode gained on a set since the baseline, by measure, over the questions of both.

    `gains` are per question and of nDCG@10, in the order of `questions`.
    """

    dataset: str
    mode: str
    questions: list[str]
    values: dict[str, Estimate]
    gains: list[float]


@dataclass(frozen=True, slots=True)
class Gate:
    """What must hold, else the evaluation has failed.

    `least` are the lowest means allowed, `drops` how far each measure may fall below the baseline.
    A drop fails when its interval excludes 0 as well, unless `strict`.
    """

    least: Mapping[str, float]
    drops: Mapping[str, float]
    strict: bool = False


def save(outcomes: Iterable[Outcome], path: Path) -> None:
    """Everything that a later run is compared with: the values of every question."""
    sets = [
        outcome_record(outcome)
        | {
            "questions": outcome.questions,
            "scores": {mode: dict(scores) for mode, scores in outcome.scores.items()},
        }
        for outcome in outcomes
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"footnote_eval": FORM, "sets": sets}, ensure_ascii=False)
    path.write_text(content + "\n", "utf-8")


def load(path: Path) -> dict[str, dict[str, Any]]:
    """The sets of a saved evaluation, by name; raises InvalidInput for anything else."""
    try:
        saved: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if saved["footnote_eval"] != FORM:
            raise InvalidInput(f"{path} was saved by another version.", hint="Save it anew.")
        return {one["dataset"]: one for one in saved["sets"]}
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}.", hint=_FORM) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{path} is no saved evaluation: {error!r}.", hint=_FORM) from None


def changes(outcome: Outcome, saved: Mapping[str, dict[str, Any]]) -> list[Change]:
    """Each mode that both have; raises InvalidInput when they share no question."""
    before = saved.get(outcome.dataset)
    if before is None:
        raise InvalidInput(
            f"The baseline has no set {outcome.dataset}, only {', '.join(saved)}.", hint=_FORM
        )
    old_places = {one: place for place, one in enumerate(before["questions"])}
    shared = [
        (place, old_places[query_id], query_id)
        for place, (query_id, text) in enumerate(outcome.questions.items())
        if before["questions"].get(query_id) == text
    ]
    if not shared:
        raise InvalidInput(
            f"{outcome.dataset} and its baseline have no question in common.",
            hint="Save a new baseline with these questions.",
        )
    found: list[Change] = []
    for mode, scores in outcome.scores.items():
        if mode not in before["scores"]:
            continue
        old = cast("dict[str, list[float]]", before["scores"][mode])
        differences = {
            name: [scores[name][new] - old[name][was] for new, was, _ in shared]
            for name in MEASURES
            if name in old
        }
        found.append(
            Change(
                outcome.dataset,
                mode,
                [query_id for *_, query_id in shared],
                estimates(differences, seed=outcome.seed),
                differences[MEASURES[0]],
            )
        )
    return found


def failures(outcome: Outcome, since: Sequence[Change], gate: Gate) -> list[str]:
    """A line for everything that does not hold in the outcome's main mode."""
    mode = outcome.main_mode
    lines: list[str] = []
    for name, least in gate.least.items():
        value = estimates({name: outcome.scores[mode][name]}, seed=outcome.seed)[name].mean
        if value < least:
            lines.append(f"{outcome.dataset}, {mode}: {name} is {value:.4f}, below {least:g}.")
    for change in since:
        for name, most in gate.drops.items() if change.mode == mode else ():
            gain = change.values[name]
            if -gain.mean > most and (gate.strict or gain.excludes_zero):
                lines.append(
                    f"{outcome.dataset}, {mode}: {name} fell by {-gain.mean:.4f} (95 %:"
                    f" {-gain.high:.4f} to {-gain.low:.4f}), more than {most:g}."
                )
    return lines


def read_gate(fail_below: Sequence[str], max_drop: Sequence[str], *, strict: bool) -> Gate:
    """From `measure=value`; a drop without a measure is meant for each of them."""
    least = dict(_limit(given, "--fail-below") for given in fail_below)
    drops: dict[str, float] = {}
    for given in max_drop:
        if "=" in given:
            name, value = _limit(given, "--max-drop")
            drops[name] = value
        else:
            value = _number(given, "--max-drop")
            drops = dict.fromkeys(MEASURES, value) | drops
    return Gate(least, drops, strict)


def _limit(given: str, option: str) -> tuple[str, float]:
    name, separator, value = given.partition("=")
    if not separator:
        raise InvalidInput(
            f"{option} {given!r} is not MEASURE=VALUE.", hint=f"For example {option} nDCG@10=0.45."
        )
    return measure_name(name), _number(value, option)


def _number(given: str, option: str) -> float:
    try:
        value = float(given)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise InvalidInput(
            f"{option}: {given!r} is not a number from 0 to 1.", hint="Measures are from 0 to 1."
        )
    return value
