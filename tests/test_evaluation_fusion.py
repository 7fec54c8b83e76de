"""The comparison of ways to fuse: how it judges, and what it makes of questions."""

from collections import Counter
from random import Random
from typing import Any, cast

import numpy as np

from evaluation.code_questions import functions
from evaluation.datasets import Dataset, Document
from evaluation.fusion import BASE, Judged, by_kind, compare, cross_judged, ndcg, sampled
from evaluation.fusion_signals import Case
from evaluation.fusion_typos import Mender, with_typo
from evaluation.metrics import score_questions


class FakeIndex:
    """Three documents, the second of two passages."""

    def __init__(self) -> None:
        documents = [Document(name, "", name) for name in ("a", "b", "c")]
        self.dataset = Dataset("set", documents, {"q": "?"}, {"q": {"a": 1, "b": 2, "x": 1}})
        self.query_ids = ["q"]
        self.passages = [type("Passage", (), {"number": number})() for number in (0, 1, 1, 2)]


def test_ndcg_is_that_of_trec_eval_over_documents() -> None:
    case = cast(Case, type("Case", (), {"index": FakeIndex(), "query": 0})())
    found = ndcg(case, (np.array([0, 1, 2, 3]), np.array([0.5, 0.1, 0.4, 0.9])))
    [expected] = score_questions({"q": {"a": 1, "b": 2, "x": 1}}, {"q": ["c", "a", "b"]})["nDCG@10"]
    assert abs(found - expected) < 1e-9


def test_a_constant_is_judged_by_the_half_that_had_no_say() -> None:
    # `even` is right on the even questions, `odd` on the odd ones: each half chooses the wrong one.
    even, odd = np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.0, 1.0, 0.0, 1.0])
    judged = cross_judged("some", {"even": {"set": even}, "odd": {"set": odd}})
    assert judged.constants == ("odd", "even")
    assert judged.scores["set"].tolist() == [0.0, 0.0, 0.0, 0.0]


def test_only_what_gains_on_average_and_loses_nowhere_is_worth_it() -> None:
    base = {"one": np.full(50, 0.5), "two": np.full(50, 0.5)}
    better = {"one": base["one"] + 0.2, "two": base["two"]}
    mixed = {"one": base["one"] + 0.4, "two": base["two"] - 0.1}
    rows = compare(
        [Judged(BASE, ("",), base), Judged("b", ("",), better), Judged("m", ("",), mixed)]
    )
    assert [row.is_worth_it for row in rows] == [False, True, False]
    assert abs(rows[1].gains["average"].mean - 0.1) < 1e-9


def test_mends_what_is_one_mistake_away_and_nothing_else() -> None:
    mender = Mender({"invoice": 3, "invite": 9, "cat": 5})
    asked: Any = {"invoce": 2, "inovice": 1, "invite": 1, "cot": 1, "zebra": 1}
    mended = mender.mended(Counter(asked))
    assert mended == {"invoice": 3, "invite": 1, "cot": 1, "zebra": 1}


def test_a_typo_changes_one_word() -> None:
    text = "when was the invoice signed"
    for seed in range(20):
        typo = with_typo(text, Random(seed))
        changed = [a != b for a, b in zip(text.split(), typo.split(), strict=True)]
        assert sum(changed) <= 1
    assert with_typo("a b", Random(0)) == "a b"


def test_a_sample_keeps_what_is_judged() -> None:
    documents = [Document(str(number), "", "text") for number in range(50)]
    dataset = Dataset("set", documents, {"q": "?"}, {"q": {"7": 1, "31": 0}})
    kept = {one.id for one in sampled(dataset, 10).documents}
    assert len(kept) == 10
    assert {"7", "31"} <= kept
    assert sampled(dataset, None) is dataset


def test_code_questions_leave_the_answer_out_of_the_code() -> None:
    source = '''
def add(a, b):
    """Return the sum of two numbers.  Exact.

    More of it.
    """
    total = a + b
    return total

def undocumented(a):
    b = a
    return b

def short(a):
    """Return the sum of two numbers."""
    return a
'''
    assert list(functions(source)) == [
        ("Return the sum of two numbers", "def add(a, b):\n    total = a + b\n    return total")
    ]


def test_among_programs_the_vectors_weigh_more() -> None:
    kinds = {"code": "x = f(a, b)\nreturn x", "prose": "What is written here is no program."}
    for kind, text in kinds.items():
        index = type("Index", (), {"passages": [type("P", (), {"embedded": text})()] * 3})()
        signals = {"vector": np.array([1.0, 0.0, -1.0]), "keyword": np.array([-1.0, 0.0, 1.1])}
        case = cast(
            Case,
            type(
                "Case",
                (),
                {
                    "index": index,
                    "candidates": np.arange(3),
                    "standardised": lambda _, name, known=signals: known[name],
                },
            )(),
        )
        places, scores = by_kind(1.4)(case)
        assert places[int(np.argmax(scores))] == (0 if kind == "code" else 2)
