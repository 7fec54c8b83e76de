"""PDF pages by their layout: columns, tables, headings, and what is not text of the document."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from ingestion.parsing import pdf
from ingestion.parsing.documents import parse_document
from ingestion.types import ParsedDocument
from tests import samples

LEFT = [
    "Bees dance to tell where the flowers are",
    "and how far away. The angle of the dance",
    "is the angle to the sun. Long dances mean",
    "long flights, and the others in the dark",
    "of the hive feel what they cannot see.",
]
RIGHT = [
    "Ants write their maps on the ground with",
    "a scent that fades. Short paths are walked",
    "more often, so their scent is stronger, and",
    "more ants follow them. Nobody knows the",
    "whole map, and yet the colony finds food.",
]
ROWS = [
    ["Country", "Days", "Since"],
    ["Spain", "30", "1980"],
    ["Latvia", "28", "2001"],
    ["Japan", "20", "1987"],
]
SIZE = 10.0


@dataclass
class Text:
    x: float
    y: float
    text: str
    size: float = SIZE
    bold: bool = False
    turned: bool = False


def page(*texts: Text, rules: Sequence[tuple[float, float, float, float]] = ()) -> bytes:
    shown = [b"%g %g m %g %g l S" % rule for rule in rules]
    for each in texts:
        font = "F2" if each.bold else "F1"
        matrix = "0 1 -1 0" if each.turned else "1 0 0 1"
        text = each.text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
        shown.append(
            f"BT /{font} {each.size:g} Tf {matrix} {each.x:g} {each.y:g} Tm ({text}) Tj ET".encode(
                "cp1252"
            )
        )
    return b"\n".join(shown)


def lines(x: float, y: float, texts: Sequence[str]) -> list[Text]:
    return [Text(x, y - 12 * number, text) for number, text in enumerate(texts)]


def read(*pages: bytes) -> ParsedDocument:
    return parse_document(samples.pdf_of_streams(list(pages)), "a.pdf")


def cells(rows: Sequence[Sequence[str]], y: float = 600, width: float = 120) -> list[Text]:
    return [
        Text(60 + width * column, y - 20 * row, cell)
        for row, line in enumerate(rows)
        for column, cell in enumerate(line)
        if cell
    ]


def grid(rows: int, columns: int, y: float = 614) -> list[tuple[float, float, float, float]]:
    right, bottom = 55 + 120 * columns, y - 20 * rows
    across = [(55, y - 20 * row, right, y - 20 * row) for row in range(rows + 1)]
    down = [(55 + 120 * col, y, 55 + 120 * col, bottom) for col in range(columns + 1)]
    return [*across, *down]


TABLE = (
    "| Country | Days | Since |\n| --- | --- | --- |\n| Spain | 30 | 1980 |\n"
    "| Latvia | 28 | 2001 |\n| Japan | 20 | 1987 |"
)


def test_columns_are_read_one_after_the_other_whatever_the_order_they_were_written_in() -> None:
    left, right = lines(60, 600, LEFT), lines(330, 600, RIGHT)
    by_rows = [text for pair in zip(left, right, strict=True) for text in pair]
    title = Text(60, 700, "The map that nobody in the hive or in the anthill has ever seen", 20)
    below = lines(
        60, 500, ["Both ways are old, and both of them were found without a plan by anyone."]
    )
    parsed = read(page(*below, *by_rows, title))
    assert parsed.text == (
        f"# {title.text}\n\n{' '.join(LEFT)}\n\n{' '.join(RIGHT)}\n\n{below[0].text}"
    )


def test_labels_beside_their_values_are_no_columns() -> None:
    pairs = [("Name", "Ada Lovelace of London"), ("Born", "in an English winter"),
             ("Field", "the analytical engine"), ("Died", "of what nobody could heal")]  # fmt: skip
    texts = [
        Text(x, 600 - 14 * row, text)
        for row, pair in enumerate(pairs)
        for x, text in zip((60, 200), pair, strict=True)
    ]
    assert read(page(*texts)).text.split("\n") == [" ".join(pair) for pair in pairs]


def test_ruled_cells_are_a_table() -> None:
    before = lines(60, 660, ["Before the table stands a sentence."])
    after = lines(60, 500, ["After the table stands another."])
    parsed = read(page(*before, *cells(ROWS), *after, rules=grid(4, 3)))
    assert parsed.text == f"{before[0].text}\n\n{TABLE}\n\n{after[0].text}"


def test_a_cell_that_reaches_over_columns_is_one_cell() -> None:
    rules = [rule for rule in grid(2, 2) if rule != (175, 614, 175, 574)]
    rules.append((175, 594, 175, 574))
    texts = cells([["Heading over both of the columns", ""], ["one", "two"], ["", ""]])
    assert read(page(*texts, rules=rules)).text == texts[0].text + " one two" or (
        "| Heading over both of the columns |  |\n| --- | --- |\n| one | two |"
        in read(
            page(*texts, *cells([["three", "four"]], 560), rules=[*rules, *grid(1, 2, 574)])
        ).text
    )


def test_clearly_aligned_numbers_are_a_table_without_rules() -> None:
    assert read(page(*cells(ROWS))).text == TABLE


@pytest.mark.parametrize("y", [640, 510])
def test_a_caption_stands_directly_above_its_table(y: float) -> None:
    caption = Text(60, y, "Table 3: Days of leave by country")
    parsed = read(page(caption, *cells(ROWS), rules=grid(4, 3)))
    assert parsed.text == f"{caption.text}\n{TABLE}"


def test_a_frame_around_text_is_no_table() -> None:
    frame = [(50, 640, 300, 640), (50, 530, 300, 530), (50, 530, 50, 640), (300, 530, 300, 640)]
    assert read(page(*lines(60, 600, LEFT), rules=frame)).text == " ".join(LEFT)


def test_headings_have_the_levels_of_their_type() -> None:
    texts = [
        Text(60, 740, "Holidays", 22),
        *lines(60, 710, LEFT),
        Text(60, 630, "In Spain", 16),
        *lines(60, 600, RIGHT),
        Text(60, 520, "2.1 For apprentices", bold=True),
        *lines(60, 500, LEFT),
    ]
    parsed = read(page(*texts))
    headings = [line for line in parsed.text.split("\n") if line.startswith("#")]
    assert headings == ["# Holidays", "## In Spain", "#### 2.1 For apprentices"]
    assert parsed.title == "Holidays"


def test_words_broken_at_the_end_of_a_line_are_joined_as_the_document_writes_them() -> None:
    texts = [
        "Everybody knows that bees are well-known danc-",
        "ers and that the queen is the only one that is well-",
        "known by name to all of the others, and to Schloss-",
        "Berlin as well.",
    ]
    assert read(page(*lines(60, 600, texts))).text == (
        "Everybody knows that bees are well-known dancers and that the queen is the only one that"
        " is well-known by name to all of the others, and to Schloss-Berlin as well."
    )


def test_bullets_are_a_list() -> None:
    texts = ["Three things:", "• the first of them", "• the second", "• the third"]
    assert read(page(*lines(60, 600, texts))).text == (
        "Three things:\n- the first of them\n- the second\n- the third"
    )


def test_what_is_turned_on_its_side_comes_last_and_a_turned_page_is_turned_back() -> None:
    stamp = Text(30, 300, "arXiv:1234.5678 [cs.CL]", turned=True)
    assert read(page(stamp, *lines(60, 600, LEFT))).text == " ".join(LEFT) + f"\n\n{stamp.text}"
    on_its_side = [
        Text(300 + 12 * number, 100, text, turned=True) for number, text in enumerate(LEFT)
    ]
    assert read(page(*on_its_side)).text == " ".join(LEFT)


def test_page_numbers_go_and_headers_stay_once() -> None:
    pages = [
        page(
            Text(60, 770, "Handbook of bees"),
            *lines(60, 600, [f"Page about the {what}."]),
            Text(300, 30, f"- {number} -"),
        )
        for number, what in enumerate(["queen", "drone", "dance", "hive"], 1)
    ]
    text = read(*pages).text
    assert text == (
        "Handbook of bees\n\nPage about the queen.\n\nPage about the drone."
        "\n\nPage about the dance.\n\nPage about the hive."
    )


def test_a_page_whose_layout_cannot_be_found_gives_its_plain_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(pdf, "read_columns", fails)
    assert read(page(*lines(60, 600, LEFT))).text.split() == " ".join(LEFT).split()


def test_metadata_is_that_of_the_file() -> None:
    content = samples.pdf([["Text."]], title="Report").replace(
        b"<< /Title", b"<< /Author (Ann; Bob) /CreationDate (D:20240131120000+01'00') /Title"
    )
    parsed = parse_document(content, "a.pdf")
    assert parsed.title == "Report"
    assert parsed.metadata == {
        "authors": ["Ann", "Bob"],
        "created_at": "2024-01-31T12:00:00+01:00",
    }


def test_pages_of_nothing_but_one_line_keep_it() -> None:
    assert read(*[page(Text(60, 600, "Confidential"))] * 3).text.count("Confidential") == 3
