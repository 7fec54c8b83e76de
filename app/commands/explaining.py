"""How `footnote search --explain` draws what a search says of itself."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from app.commands.output import console, plain

LEG_NAMES = {"keyword": "words", "vector": "meaning", "late_interaction": "tokens"}
BAR_COLUMNS = 24
UNKNOWN = "–"


def print_explained(reply: Mapping[str, Any]) -> None:
    """A row for each hit, and under it what the search as a whole did."""
    told = _of(reply, "explanation")
    output = console()
    if not reply["hits"]:
        output.print("Nothing was found.")
    else:
        output.print(_hits_table(reply["hits"], told))
    output.print(Text(_legend(told), "dim"))
    for title, part in (
        ("The query", _query_lines(told)),
        ("Its terms", _terms_table(told)),
        ("Rewriting", _model_said(told.get("rewrite"))),
        ("Reranking", _model_said(told.get("rerank"))),
        ("Filters", _filter_lines(told)),
        ("Models and weights", _model_lines(told)),
        ("Where the time went", _stages_table(told, reply.get("took_ms"))),
        ("Caches", _cache_lines(told)),
    ):
        if part is not None:
            output.print()
            output.print(Text(title, "bold"))
            output.print(part)


# --- hits -----------------------------------------------------------------------------------------


def _hits_table(hits: Sequence[Mapping[str, Any]], told: Mapping[str, Any]) -> Table:
    legs = list(_of(told, "weights"))
    reranked = any("rerank" in _of(hit, "explanation") for hit in hits)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("passage", ratio=1, overflow="fold", min_width=16)
    for leg in legs:
        # Rank, raw score and share below each other: three columns a leg would not fit.
        table.add_column(LEG_NAMES.get(leg, leg), justify="right", no_wrap=True)
    if reranked:
        table.add_column("reranked", justify="right", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    for number, hit in enumerate(hits, 1):
        explained = _of(hit, "explanation")
        row: list[Text] = [Text(str(number)), _passage(hit)]
        row += [_opinion(explained.get(leg)) for leg in legs]
        if reranked:
            row.append(_movement(explained.get("rerank")))
        table.add_row(*row, Text(f"{hit['score']:.3f}", "bold"))
    return table


def _passage(hit: Mapping[str, Any]) -> Text:
    headings = hit["heading"]
    path = [hit["title"], *headings[headings[:1] == [hit["title"]] :]]
    text = Text(plain(" › ".join(path)), "bold")
    page = f", page {hit['page']}" if hit["page"] is not None else ""
    text.append(f"\n{plain(hit['uri'])}{page}", "dim")
    if copies := hit.get("copies"):
        text.append(f"\nand {len(copies)} more with the same text", "dim")
    return text


def _opinion(opinion: Mapping[str, Any] | None) -> Text:
    """The place in the leg's own order, its score, and what standing out brings to the sum."""
    if opinion is None:
        return Text(UNKNOWN, "dim")
    rank, score, share = (opinion.get(name) for name in ("rank", "score", "standardised"))
    text = Text(UNKNOWN if rank is None else f"{rank}.", "dim" if rank is None else "")
    if score is not None:
        text.append(f"\n{score:.3f}", "dim")
    if share is not None:
        text.append(f"\n{share:+.2f}", "green" if share > 0 else "yellow")
    return text


def _movement(movement: Mapping[str, Any] | None) -> Text:
    if movement is None:
        return Text(UNKNOWN, "dim")
    before, after = movement["from"], movement["to"]
    arrow = "↑" if after < before else "↓" if after > before else "="
    style = {"↑": "green", "↓": "yellow", "=": "dim"}[arrow]
    moved = f"{before} {arrow} {after}" if arrow != "=" else "="
    text = Text(moved, style)
    text.append(f"\n{movement['score']:.3f}", "dim")
    text.append(f"\n{movement['standardised']:+.2f}", "dim")
    return text


def _legend(told: Mapping[str, Any]) -> str:
    columns = "In each column: place in that order, its own score"
    if len(_of(told, "weights")) > 1:
        columns += ", and how many standard deviations it stands out"
    return f"{columns}. {UNKNOWN}: not among its candidates."


# --- the search -----------------------------------------------------------------------------------


def _query_lines(told: Mapping[str, Any]) -> Table | None:
    query: Mapping[str, Any] | None = told.get("query")
    if not query:
        return None
    return _pairs((name.replace("_", " "), _words(value)) for name, value in query.items())


def _terms_table(told: Mapping[str, Any]) -> Table | None:
    terms = _of(told, "terms")
    if not terms:
        return None
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("term", overflow="fold")
    table.add_column("passages", justify="right", no_wrap=True)
    table.add_column("idf", justify="right", no_wrap=True)
    table.add_column("stands for", overflow="fold")
    for term, one in sorted(terms.items(), key=lambda item: -item[1]["idf"]):
        others = ", ".join(one.get("stands_for") or ())
        cells = (term, f"{one['passages']:,}", f"{one['idf']:.2f}", others)
        table.add_row(*(Text(plain(cell)) for cell in cells))
    return table


def _model_said(said: Mapping[str, Any] | str | None) -> Table | Text | None:
    """What a model did for the search, or why it did not."""
    if said is None:
        return None
    if isinstance(said, str):
        return Text(plain(said), "yellow")
    return _pairs((str(name), _words(value)) for name, value in said.items())


def _filter_lines(told: Mapping[str, Any]) -> Text | None:
    filtered = told.get("filtered")
    if not filtered:
        return None
    fields = ", ".join(filtered["fields"])
    total = f" of {told['passages']:,}" if "passages" in told else ""
    return Text(plain(f"{fields}: {filtered['left']:,}{total} passages left"))


def _model_lines(told: Mapping[str, Any]) -> Table | None:
    models, weights, candidates = (_of(told, name) for name in ("models", "weights", "candidates"))
    lines = [(name, str(model)) for name, model in models.items()]
    lines += [
        (
            LEG_NAMES.get(leg, leg),
            f"weight {weight:g}, {candidates.get(leg, 0):,} candidates of {told['passages']:,}"
            if "passages" in told
            else f"weight {weight:g}",
        )
        for leg, weight in weights.items()
    ]
    return _pairs(lines) if lines else None


def _stages_table(told: Mapping[str, Any], took_ms: float | None) -> Table | None:
    stages = _of(told, "stages_ms")
    if not stages:
        return None
    longest = max(stages.values()) or 1.0
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    for name, taken in stages.items():
        bar = "▇" * max(1, round(BAR_COLUMNS * taken / longest)) if taken else ""
        table.add_row(Text(name), Text(f"{taken:,.1f} ms"), Text(bar, "cyan"))
    if took_ms is not None:
        table.add_row(Text("in all", "bold"), Text(f"{took_ms:,.1f} ms", "bold"), Text())
    return table


def _cache_lines(told: Mapping[str, Any]) -> Table | None:
    caches = _of(told, "cache")
    return _pairs((name, _words(value)) for name, value in caches.items()) if caches else None


def _of(told: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of what was told; empty when it is not there."""
    found: Mapping[str, Any] | None = told.get(name)
    return found or {}


def _pairs(lines: Iterable[tuple[str, str]]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for name, value in lines:
        table.add_row(Text(plain(name)), Text(plain(value)))
    return table


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        named: Mapping[Any, Any] = value  # pyright: ignore[reportUnknownVariableType]
        return ", ".join(f"{name}: {_words(one)}" for name, one in named.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"  # pyright: ignore[reportUnknownArgumentType]
    return str(value)
