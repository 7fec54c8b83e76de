"""The page of an evaluation: well formed, on its own, and safe with whatever documents hold."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import Markup

from evaluation.baseline import Change
from evaluation.charts import interval_bar, round_up, sorted_differences, time_strip
from evaluation.page import render, write_page
from evaluation.run import Found, Outcome
from evaluation.statistics import Estimate, estimates
from tests.test_evaluation_measures import outcome_of

VOID = {"meta", "br", "hr", "img", "input", "link"}
EVIL = "<script>alert('x')</script>&amp; \"quoted\""


class Page(HTMLParser):
    """Every element must be closed where it was opened; what stands in them is kept."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


@pytest.fixture
def outcome() -> Outcome:
    modes = ("keyword", "vector", "rrf", "hybrid")
    made = outcome_of({"nDCG@10": [0.0, 0.5, 1.0], "RR": [0.0, 0.25, 1.0]}, modes=modes)
    better = made.scores["hybrid"] | {"nDCG@10": [0.0, 0.7, 0.9]}
    return replace(
        made,
        scores=made.scores | {"hybrid": better},
        questions={"q0": EVIL, "q1": "a long question " * 40, "q2": "perfect"},
        times_ms={"keyword": [1.0, 2.0, 30.0], "hybrid": [4.0, 5.0, 6.0]},
        expected={"q0": [EVIL, "b", "c", "d"], "q1": ["e"], "q2": ["f"]},
        found={"q0": [Found(EVIL, EVIL, False)], "q1": [Found("title", "text", True)], "q2": []},
    )


def change_of(outcome: Outcome) -> Change:
    gains = [0.0, 0.25, -0.5]
    values = estimates({"nDCG@10": gains, "RR": [0.1, 0.1, 0.1]})
    return Change(outcome.dataset, "hybrid", list(outcome.questions), values, gains)


def test_the_page_is_well_formed_and_has_every_plot(outcome: Outcome) -> None:
    page = Page(render([outcome], [[change_of(outcome)]]))
    # 6 measures × 4 modes; hybrid against 3; 2 measures since the baseline; 2 modes' times
    assert sum(one == ("class", "bar") for one in page.attributes) == 6 * 4 + 3 + 2 + 2
    assert sum(one == ("class", "differences") for one in page.attributes) == 2
    assert page.counts["svg"] == page.counts["title"] - 1
    for words in (
        "hybrid: nDCG@10 0.533",
        "ahead on 1, behind on 1, equal on 1; on average −0.083",
        "ahead on 1, behind on 1, equal on 1; on average +0.033",
        "first relevant: place 4",
        "first relevant: not found",
        "and 1 more",
        "embedding model",
    ):
        assert words in " ".join(page.text.split()), words


def test_the_page_needs_nothing_else(outcome: Outcome) -> None:
    html = render([outcome, replace(outcome, dataset="second")], [[], []])
    page = Page(html)
    assert "script" not in page.counts
    assert "link" not in page.counts
    assert not {name for name, _ in page.attributes} & {"src", "href", "onload", "style"}
    assert not re.search(r"https?:|@import|url\(", html)
    for needed in ("prefers-color-scheme: dark", "@media print", "max-width: 40rem", "viewport"):
        assert needed in html


def test_what_documents_hold_is_text_only(outcome: Outcome) -> None:
    html = render([outcome], [[]])
    assert "<script" not in html
    assert Page(html).text.count(EVIL) == 4


def test_plots_have_words_for_those_who_do_not_see_them(outcome: Outcome) -> None:
    page = Page(render([outcome], [[]]))
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert len(labels) == page.counts["svg"]
    assert "keyword (BM25): p50 2.0 ms, p95 27.2 ms" in labels


def test_a_page_may_be_of_one_mode_without_times(tmp_path: Path) -> None:
    write_page([outcome_of({"RR": [0.5, 0.5]})], [[]], tmp_path / "new" / "page.html")
    page = Page((tmp_path / "new" / "page.html").read_text("utf-8"))
    assert "Which is better?" not in page.text
    assert "What a client waited" not in page.text


def test_shapes_stand_where_the_values_are() -> None:
    bar = interval_bar(Estimate(0.5, 0.4, 0.65), "a & b")
    assert 'class="fill" x="0.0000" y="2" width="0.5000"' in bar
    assert 'x1="0.4000" x2="0.6500"' in bar
    assert bar.count("a &amp; b") == 2
    assert isinstance(bar, Markup)


def test_differences_are_columns_from_best_to_worst() -> None:
    plot = sorted_differences([-0.25, 0.5, 0.0, 0.125], 0.5, "label")
    assert 'viewBox="0 0 4 2"' in plot
    assert 'class="gain" d="M0 1V0h1V0.75h1V1Z"' in plot
    assert 'class="loss" d="M3 1V1.5h1V1Z"' in plot
    assert "path" not in sorted_differences([0.0, 0.0], 1.0, "label")


def test_times_beyond_the_scale_stand_at_its_end() -> None:
    strip = time_strip([1.0, 900.0], 10.0, "label")
    assert strip.count('class="tick"') == 2
    assert 'class="tick" x1="10.0000"' in strip


@pytest.mark.parametrize(
    ("value", "end"), [(0.03, 0.05), (0.05, 0.05), (0.051, 0.1), (7, 10), (1001, 2000), (0, 1)]
)
def test_scales_end_with_round_numbers(value: float, end: float) -> None:
    assert round_up(value) == pytest.approx(end)
