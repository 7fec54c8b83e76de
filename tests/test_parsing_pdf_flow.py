"""Text that runs on from page to page of a PDF is torn by none of them."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingestion.types import ParsedDocument
from tests.test_parsing_pdf import TABLE, Text, cells, grid, page, read

TOP, LEADING = 700, 12

FIRST = [
    "The bees of a hive share what they know of the meadows around,",
    "and nobody tells them where to fly. A bee that has found a good",
    "place comes home and dances, and the others in the dark of the",
]
SECOND = [
    "hive follow her steps. The angle of the dance is the angle to the",
    "sun, and the longer it lasts the farther away the flowers are.",
]
BODY = " ".join([*FIRST, *SECOND])
OTHER = [
    "Ants write their maps on the ground with a scent that soon fades.",
    "Short paths are walked more often, so that their scent is stronger,",
    "and nobody knows the whole of it.",
]


def about(topic: str) -> list[str]:
    """A paragraph that has no line in common with that of another topic."""
    return [
        f"{topic} write their maps on the ground with a scent that fades.",
        f"For {topic} the paths that are short are the ones that smell most,",
        f"and none of the {topic} knows them all.",
    ]


def sheet(*groups: Sequence[str], top: float = TOP) -> list[Text]:
    """Lines from the top of a page, with a line left empty between groups."""
    rows = [row for group in groups for row in (*group, "")]
    return [Text(60, top - LEADING * at, row) for at, row in enumerate(rows) if row]


def texts_of(parsed: ParsedDocument) -> list[str]:
    return [parsed.text[each.start : each.end] for each in parsed.pages]


def flows(parsed: ParsedDocument) -> list[bool]:
    return [each.reads_on for each in parsed.pages]


def test_a_sentence_is_joined_over_the_end_of_a_page() -> None:
    parsed = read(page(*sheet(OTHER, FIRST)), page(*sheet(SECOND, OTHER)))
    other = " ".join(OTHER)
    assert parsed.text == f"{other}\n\n{BODY}\n\n{other}"
    assert texts_of(parsed) == [
        f"{other}\n\n{' '.join(FIRST)}",
        f"{' '.join(SECOND)}\n\n{other}",
    ]
    assert flows(parsed) == [False, True]


@pytest.mark.parametrize(
    ("end", "start", "joined"),
    [
        ("and what a bee remembers of it is alto-", "gether hers. Then", "is altogether hers."),
        ("and what she knows of the sun is self-", "evident to her. Is it self-evident", "is self-evident to"),
    ],
)  # fmt: skip
def test_a_word_is_joined_with_its_hyphen_only_where_it_has_one(
    end: str, start: str, joined: str
) -> None:
    parsed = read(page(*sheet([*FIRST, end])), page(*sheet([f"{start} they rest.", *OTHER])))
    assert joined in parsed.text
    first, second = parsed.pages
    assert first.end == second.start


def test_notes_and_figures_stand_beside_the_sentence_and_not_in_it() -> None:
    note = Text(60, 560, "1 Seen by von Frisch in a hive of glass.", size=7)
    caption = "Figure 2: A hive from within"
    below = [Text(60, TOP, caption), *sheet(SECOND, OTHER, top=TOP - 60)]
    parsed = read(page(*sheet(OTHER, FIRST), note), page(*below))
    assert BODY in parsed.text
    first, second = texts_of(parsed)
    assert note.text in first
    assert caption in second


def test_what_begins_anew_stays_apart() -> None:
    ended = [*FIRST[:2], "A bee dances."]
    assert "\n\nAnts write" in read(page(*sheet(OTHER, ended)), page(*sheet(OTHER))).text
    full = [*FIRST[:2], FIRST[2].replace("of the", "there.")]
    indented = [Text(80, TOP, OTHER[0]), *sheet(OTHER[1:], top=TOP - LEADING)]
    assert "there.\n\nAnts write" in read(page(*sheet(OTHER, full)), page(*indented)).text
    # A line more would have found room below: the paragraph ends there.
    before, after = [about(topic) for topic in ("Moths", "Flies")], [about("Gnats")] * 1
    pages = [page(*sheet(*before, ["The end."])), page(*sheet(OTHER, full)), page(*sheet(*after))]
    assert "there.\n\nGnats write" in read(*pages).text
    heading = Text(60, TOP, "How ants find their way", size=16)
    below = sheet(OTHER, top=TOP - 40)
    assert "the\n\n# How ants" in read(page(*sheet(OTHER, FIRST)), page(heading, *below)).text


def test_pages_that_end_early_or_where_nothing_runs_on_are_on_their_own() -> None:
    ants, wasps, moths, flies = map(about, ("Ants", "Wasps", "Moths", "Flies"))
    whole = [
        page(*sheet(ants, wasps, moths, FIRST)),
        page(*sheet(SECOND, flies, about("Gnats"), about("Mites"))),
    ]
    short = page(*sheet(["And that is all there is to say of them."]))
    long = page(*sheet(about("Ticks"), about("Midges"), about("Bugs"), about("Newts")))
    assert flows(read(*whole, short, long)) == [False, True, True, False]
    slides = [page(*sheet(about(topic), about(f"Old {topic}"))) for topic in ("ants", "bees")]
    assert not any(flows(read(*slides)))


def test_a_list_and_a_table_go_on() -> None:
    items = [f"{number}. A thing to know of the hive, said in a line." for number in range(1, 9)]
    parsed = read(page(*sheet(items[:5])), page(*sheet(items[5:])))
    assert parsed.text == "\n".join(items)
    rows = [["Country", "Days", "Since"], ["Spain", "30", "1980"], ["Latvia", "28", "2001"]]
    rest = [["Japan", "20", "1987"]]
    for below in ([rows[0], *rest], [*rest, ["Peru", "30", "1991"]]):
        parsed = read(
            page(*cells(rows), rules=grid(3, 3)), page(*cells(below), rules=grid(len(below), 3))
        )
        assert parsed.text.startswith(TABLE)
        assert parsed.text.count("Country") == 1
        assert texts_of(parsed)[1].startswith("| Japan")


def test_a_table_with_a_caption_of_its_own_is_another() -> None:
    rows = [["Country", "Days", "Since"], ["Spain", "30", "1980"], ["Latvia", "28", "2001"]]
    table = page(Text(60, 625, "Table 4: More of them"), *cells(rows), rules=grid(3, 3))
    assert read(page(*cells(rows), rules=grid(3, 3)), table).text.count("Country") == 2


def test_a_running_head_is_known_by_the_number_of_its_page() -> None:
    heads = [f"Chapter {1 + number // 2}: Of {['ants', 'bees', 'moths'][number // 2]} {number + 7}"
             for number in range(6)]  # fmt: skip
    # Every page begins and ends in the middle of a sentence.
    names = ("drones", "queens", "guards", "nurses", "scouts", "robbers")
    pages = [
        page(
            Text(60, 770, head),
            *sheet(
                [f"{name} follow her steps, as the others do who sit in the dark.", "They rest."],
                [f"Nobody sees the {name} dance before they have ever flown to the"],
            ),
        )
        for head, name in zip(heads, names, strict=True)
    ]
    parsed = read(*pages)
    assert [parsed.text.count(head) for head in heads] == [1, 0, 1, 0, 1, 0]
    assert parsed.text.count(" have ever flown to the ") == 5
    assert all(flows(parsed)[1:])


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=8, max_size=16),
    heights=st.tuples(st.integers(7, 12), st.integers(7, 12)),
)
def test_the_text_is_the_same_wherever_its_pages_end(
    lengths: list[int], heights: tuple[int, int]
) -> None:
    """Paragraphs of so many lines, on pages of so many."""
    groups: list[list[str]] = []
    for number, length in enumerate(lengths):
        names = [
            f"{'abdefghjkm'[number % 10]}{'ou'[number // 10]}{'rstnp'[at]}" for at in range(length)
        ]
        rows = [
            f"{name} says what there is to say of the meadows near the {name}" for name in names
        ]
        groups.append([rows[0].capitalize(), *rows[1:], f"and no {names[0]} more."])
    set_in = [_set_in_pages(groups, height) for height in heights]
    expected = "\n\n".join(" ".join(rows) for rows in groups)
    for parsed in set_in:
        assert parsed.text == expected
        ends = [0, *(place for each in parsed.pages for place in (each.start, each.end))]
        assert ends == sorted(ends)
        assert ends[-1] == len(parsed.text)


def _set_in_pages(groups: Sequence[Sequence[str]], height: int) -> ParsedDocument:
    rows = [row for group in groups for row in (*group, "")]
    sheets = [rows[at : at + height] for at in range(0, len(rows), height)]
    filled = [each for each in sheets if any(each)]
    return read(
        *(
            page(*(Text(60, TOP - LEADING * at, row) for at, row in enumerate(each) if row))
            for each in filled
        )
    )
