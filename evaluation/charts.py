"""Plots as inline SVG: shapes only, in units of the data, stretched to the width they are given.

All text stands in the page beside them, where it keeps its size on every screen, can be selected
and is read aloud. Colours are the page's own, by class.
"""

from collections.abc import Sequence
from math import floor, log10

from markupsafe import Markup

from evaluation.statistics import Estimate

_BAR = Markup(
    '<svg class="bar" viewBox="0 0 {full:g} 10" preserveAspectRatio="none" role="img"'
    ' aria-label="{label}"><title>{label}</title>{inside}</svg>'
)
_LINE = Markup('<line class="{name}" x1="{x1:.4f}" x2="{x2:.4f}" y1="{y1:g}" y2="{y2:g}"/>')
_BOX = Markup(
    '<rect class="{name}" x="{x:.4f}" y="{y:g}" width="{width:.4f}" height="{height:g}"/>'
)
_NOTHING = Markup("")

GRID = (0.25, 0.5, 0.75, 1.0)


def interval_bar(value: Estimate, label: str) -> Markup:
    """A bar from 0 to the mean on a scale from 0 to 1, with its interval."""
    inside = [_upright("grid", x) for x in GRID]
    inside.append(_box("fill", 0, 2, value.mean, 6))
    inside += _whisker(value.low, value.high)
    return _BAR.format(full=1, label=label, inside=_NOTHING.join(inside))


def forest_row(gain: Estimate, reach: float, label: str) -> Markup:
    """A difference and its interval about 0, on a scale from −reach to reach."""
    center = reach
    name = ("gain" if gain.mean > 0 else "loss") if gain.excludes_zero else "chance"
    start, end = sorted((center, center + gain.mean))
    inside = [
        _upright("zero", center),
        _box(name, start, 3, end - start, 4),
        *_whisker(center + gain.low, center + gain.high),
    ]
    return _BAR.format(full=2 * reach, label=label, inside=_NOTHING.join(inside))


def time_strip(times_ms: Sequence[float], full_ms: float, label: str) -> Markup:
    """Every reply as a tick on a scale from 0; those beyond its end stand at the end."""
    inside = [_upright("grid", share * full_ms) for share in GRID]
    inside += [_upright("tick", min(one, full_ms), 2, 8) for one in sorted(times_ms)]
    return _BAR.format(full=full_ms, label=label, inside=_NOTHING.join(inside))


def sorted_differences(differences: Sequence[float], reach: float, label: str) -> Markup:
    """One column a question, from what gained most to what lost most; from −reach to reach."""
    ordered = sorted((one / reach for one in differences), reverse=True)
    count = len(ordered)
    grid = [
        Markup('<line class="{}" x1="0" x2="{}" y1="{:g}" y2="{:g}"/>').format(
            "zero" if y == 1 else "grid", count, y, y
        )
        for y in (0.5, 1.0, 1.5)
    ]
    gained, lost = ([one for one in ordered if one * sign > 0] for sign in (1, -1))
    shapes = [
        Markup('<path class="{}" d="{}"/>').format(name, _steps(values, first))
        for name, values, first in (("gain", gained, 0), ("loss", lost, count - len(lost)))
        if values
    ]
    return Markup(
        '<svg class="differences" viewBox="0 0 {} 2" preserveAspectRatio="none" role="img"'
        ' aria-label="{}"><title>{}</title>{}</svg>'
    ).format(count, label, label, _NOTHING.join([*grid, *shapes]))


def round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50… that is not below."""
    if value <= 0:
        return 1.0
    power = 10.0 ** floor(log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))


def _steps(values: Sequence[float], first: int) -> str:
    """The outline of columns of width 1 that stand on the middle line."""
    tops = "".join(f"V{1 - value:.4g}h1" for value in values)
    return f"M{first} 1{tops}V1Z"


def _upright(name: str, x: float, top: float = 0, bottom: float = 10) -> Markup:
    return _LINE.format(name=name, x1=x, x2=x, y1=top, y2=bottom)


def _box(name: str, x: float, y: float, width: float, height: float) -> Markup:
    return _BOX.format(name=name, x=x, y=y, width=width, height=height)


def _whisker(low: float, high: float) -> list[Markup]:
    span = _LINE.format(name="whisker", x1=low, x2=high, y1=5, y2=5)
    return [span, _upright("whisker", low, 3, 7), _upright("whisker", high, 3, 7)]
