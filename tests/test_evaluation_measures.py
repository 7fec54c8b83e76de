"""Measures, intervals, comparisons, and files for other tools."""

import json
from math import sqrt
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import ir_measures
import pytest

from app.errors import InvalidInput
from evaluation.baseline import Gate, changes, failures, load, read_gate, save
from evaluation.metrics import (
    MEASURES,
    compare_runs,
    fuse_ranks,
    measure,
    measure_name,
    score_questions,
)
from evaluation.run import Outcome
from evaluation.statistics import difference, estimates
from evaluation.trec import export, field
from evaluation.tune import choose, halves

JUDGEMENTS = {"q1": {"a/1": 2, "b": 1}, "q2": {"c": 1}}


def outcome_of(
    scores: dict[str, list[float]], *, name: str = "set", modes: tuple[str, ...] = ("hybrid",)
) -> Outcome:
    """An outcome in which all modes came to the same."""
    count = len(next(iter(scores.values())))
    questions = {f"q{number}": f"question {number}" for number in range(count)}
    every = dict.fromkeys(MEASURES, [0.5] * count) | scores
    return Outcome(
        dataset=name,
        documents=3,
        failed=0,
        passages=5,
        embedding_model="m",
        version="9.9",
        setup={"reranker": None, "weights": {"vector": 1.0}},
        questions=questions,
        judgements={query_id: {"d": 1} for query_id in questions},
        rankings={mode: {query_id: ["d", "e"] for query_id in questions} for mode in modes},
        scores=dict.fromkeys(modes, every),
    )


# --- measures -------------------------------------------------------------------------------------


def test_measures_are_means_over_all_judged_queries() -> None:
    perfect = measure(JUDGEMENTS, {"q1": ["a/1", "b"], "q2": ["c"]})
    assert perfect == dict.fromkeys(MEASURES, 1.0)
    half = measure(JUDGEMENTS, {"q1": ["b", "a/1"]})
    assert half["R@100"] == 0.5
    assert half["RR"] == 0.5
    assert half["nDCG@10"] == pytest.approx(0.43, abs=0.01)


def test_the_order_counts_and_not_how_the_scores_would_tie() -> None:
    ranking = [f"d{number}" for number in range(30)]
    for place in (0, 7, 29):
        found = measure({"q": {f"d{place}": 1}}, {"q": ranking})
        assert found["RR"] == pytest.approx(1 / (place + 1))


def test_questions_score_in_their_order() -> None:
    scores = score_questions({"z": {"a": 1}, "b": {"a": 1}}, {"b": ["x", "a"], "z": ["a"]})
    assert scores["RR"] == [1.0, 0.5]


def test_rank_fusion_adds_reciprocal_ranks() -> None:
    # 1 is first and third, 2 second twice: 1/61 + 1/63 > 2/62; 3 is in one ranking only.
    assert fuse_ranks([[1, 2, 3], [4, 2, 1]]) == [1, 2, 4, 3]


@pytest.mark.parametrize(
    ("given", "meant"),
    [("ndcg@10", "nDCG@10"), ("MRR", "RR"), ("recall@5", "R@5"), ("R@100", "R@100")],
)
def test_measures_have_more_than_one_name(given: str, meant: str) -> None:
    assert measure_name(given) == meant


# --- intervals ------------------------------------------------------------------------------------


def test_intervals_of_many_questions_are_those_of_the_normal_distribution() -> None:
    values = [(number * 37 % 100) / 100 for number in range(400)]
    found = estimates({"a": values})["a"]
    reach = 1.96 * pstdev(values) / sqrt(len(values))
    assert found.mean == pytest.approx(fmean(values))
    assert found.low == pytest.approx(found.mean - reach, abs=0.001)
    assert found.high == pytest.approx(found.mean + reach, abs=0.001)


def test_intervals_of_two_questions_can_be_counted_by_hand() -> None:
    # A quarter of the draws takes the first twice, a quarter the second, so both ends are in.
    found = estimates({"a": [0.0, 1.0]})["a"]
    assert (found.low, found.mean, found.high) == (0.0, 0.5, 1.0)
    same = estimates({"a": [0.3] * 5})["a"]
    assert (same.low, same.high) == (pytest.approx(0.3), pytest.approx(0.3))


def test_the_seed_decides_and_all_columns_share_their_draws() -> None:
    values = [(number * 37 % 100) / 100 for number in range(50)]
    once = estimates({"a": values, "b": values}, seed=1)
    assert once["a"] == once["b"]
    assert once == estimates({"a": values, "b": values}, seed=1)
    assert once["a"] != estimates({"a": values}, seed=2)["a"]


def test_a_difference_is_paired() -> None:
    # Each question gains the same, however much the questions differ among themselves.
    gain = difference([0.11, 0.51, 0.91], [0.1, 0.5, 0.9])
    assert (gain.low, gain.high) == (pytest.approx(0.01), pytest.approx(0.01))
    assert gain.excludes_zero
    assert not difference([0.0, 1.0], [1.0, 0.0]).excludes_zero
    assert not difference([0.1 + 0.2], [0.3]).excludes_zero


def test_two_rankings_of_a_golden_set_are_compared() -> None:
    judgements = {f"q{number}": {"a": 1} for number in range(20)}
    compared = compare_runs(
        judgements, {one: ["b", "a"] for one in judgements}, {one: ["a"] for one in judgements}
    )
    assert compared["RR"].before.mean == 0.5
    assert compared["RR"].after.mean == 1.0
    assert compared["RR"].gain.mean == 0.5
    assert compared["RR"].gain.excludes_zero
    assert not compared["R@100"].gain.excludes_zero


# --- baselines ------------------------------------------------------------------------------------


def test_a_drop_fails_when_it_is_no_chance(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    save([outcome_of({"RR": [1.0] * 20})], path)
    saved = load(path)

    def lines(values: list[float], *, strict: bool = False) -> list[str]:
        outcome = outcome_of({"RR": values})
        return failures(outcome, changes(outcome, saved), Gate({}, {"RR": 0.02}, strict))

    [line] = lines([0.5] * 20)
    assert line == "set, hybrid: RR fell by 0.5000 (95 %: 0.5000 to 0.5000), more than 0.02."
    assert lines([0.99] * 20) == []  # no chance, but less than what is allowed
    one_question = [0.5, *[1.0] * 19]
    assert lines(one_question) == []  # more than what is allowed, but perhaps chance
    assert len(lines(one_question, strict=True)) == 1
    assert lines([1.0] * 20, strict=True) == []


def test_only_the_main_mode_can_fail() -> None:
    outcome = outcome_of({"RR": [0.5] * 4}, modes=("keyword", "hybrid", "rrf"))
    assert outcome.main_mode == "hybrid"
    assert len(failures(outcome, [], Gate({"RR": 0.6}, {}))) == 1


def test_questions_of_both_are_compared_and_changed_ones_left_out(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    save([outcome_of({"RR": [0.1, 0.2, 0.3]})], path)
    content = json.loads(path.read_text())
    content["sets"][0]["questions"]["q1"] = "another question"
    path.write_text(json.dumps(content))
    [change] = changes(outcome_of({"RR": [0.2, 0.9, 0.4, 0.9]}), load(path))
    assert change.questions == ["q0", "q2"]
    assert change.values["RR"].mean == pytest.approx(0.1)


def test_a_baseline_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    save([outcome_of({"RR": [0.1]}, name="other")], path)
    outcome = outcome_of({"RR": [0.1]})
    with pytest.raises(InvalidInput, match="no set set, only other"):
        changes(outcome, load(path))
    saved = load(path)
    saved["set"] = saved["other"] | {"questions": {"q0": "not the same"}}
    with pytest.raises(InvalidInput, match="no question in common"):
        changes(outcome, saved)
    for content in ("no json", "{}", '{"footnote_eval": 1}', '{"footnote_eval": 9, "sets": []}'):
        path.write_text(content)
        with pytest.raises(InvalidInput, match="baseline"):
            load(path)


def test_limits_are_read_for_one_measure_or_for_all() -> None:
    gate = read_gate(["ndcg@10=0.4"], ["0.02", "mrr=0.05"], strict=True)
    assert gate.least == {"nDCG@10": 0.4}
    assert gate.drops == dict.fromkeys(MEASURES, 0.02) | {"RR": 0.05}
    assert gate.strict


# --- trec -----------------------------------------------------------------------------------------


def test_trec_files_come_to_the_same_measures(tmp_path: Path) -> None:
    judgements = {"a b": {"d 1": 2, "d/ü%2": 1}, "q2": {"x": 1, "y": 0}}
    rankings = {"a b": ["y", "d/ü%2", "d 1"], "q2": ["d 1"]}
    outcome: Any = type(
        "Outcome", (), {"dataset": "s", "judgements": judgements, "rankings": {"hybrid": rankings}}
    )
    qrels, run = export(outcome, tmp_path)
    assert (qrels.name, run.name) == ("s.qrels", "s.hybrid.run")
    library: Any = ir_measures
    read = library.calc_aggregate(
        [library.parse_measure(name) for name in MEASURES],
        list(library.read_trec_qrels(str(qrels))),
        list(library.read_trec_run(str(run))),
    )
    expected = measure(judgements, rankings)
    assert {str(name): value for name, value in read.items()} == pytest.approx(expected)


def test_names_are_one_word_and_stay_apart() -> None:
    names = ["a b", "a%20b", "a\tb", "", "%", "https://x.y/z#a?b=c&d"]
    fields = [field(name) for name in names]
    assert len(set(fields)) == len(names)
    assert not any(set(one) & set(" \t\n") for one in fields)
    assert fields[-1] == names[-1]


# --- halves and weights ---------------------------------------------------------------------------


def test_halves_are_as_hard_as_each_other() -> None:
    scores = {f"q{number}": number / 100 for number in range(101)}
    first, second = halves(scores, 0)
    assert len(first) == 51
    assert sorted([*first, *second]) == sorted(scores)
    means = [fmean(scores[one] for one in half) for half in (first, second)]
    assert means[0] == pytest.approx(means[1], abs=0.02)
    assert halves(scores, 1) != (first, second)
    assert halves(dict(reversed(scores.items())), 0) == (first, second)


def test_weights_are_chosen_only_for_a_gain() -> None:
    present = {"vector": 1.0, "keyword": 1.0}
    assert choose(present, 0.5, lambda _: 0.5) is None
    assert choose(present, 0.9, lambda weights: weights["keyword"] / 4) is None
    peak = choose(present, -0.4, lambda weights: -abs(weights["keyword"] - 1.4))
    assert peak == {"vector": 0.6, "keyword": 1.4}
    plateau = choose(present, 0.0, lambda weights: float(weights["keyword"] > 1.3))
    assert plateau == {"vector": 0.6, "keyword": 1.4}
    three = choose({"a": 1.0, "b": 1.0, "c": 0.5}, 0.5, lambda weights: weights["c"])
    assert three == {"a": 0.0, "b": 0.0, "c": 2.5}
