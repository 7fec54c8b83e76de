"""Programs among the passages: how they are known, and what that changes."""

from collections.abc import AsyncIterator

import numpy as np
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.config import Settings
from app.search.keyword import KeywordScores
from app.search.kinds import JUDGED, are_code, is_code
from app.search.ranking import CODE_WEIGHTS, rank_by_both
from app.search.vector import Neighbours
from tests.searching import Index, open_index

FUNCTION = '''def write_boolean(self, n):
    """Writes a Boolean to the stream."""
    t = TYPE_BOOL_TRUE
    if n is False:
        t = TYPE_BOOL_FALSE
    self.stream.write(t)'''


@pytest.mark.parametrize(
    "text", [FUNCTION, "const sum = (a, b) => { return a + b; };", "SELECT max(id) FROM a_b;"]
)
def test_programs_are_known_by_their_signs(text: str) -> None:
    assert is_code(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Writes a Boolean to the stream (see there).",
        "| Month | Income |\n|---|---|\n| May | 1,200.50 |",
        "Call `open_file` with its path; errors are raised as OSError, which says what happened.",
        "die Räte (2019) haben, so § 14, kein Recht; siehe auch Anhang 3 und das Protokoll.",
    ],
)
def test_prose_is_none(text: str) -> None:
    assert not is_code(text)


def test_most_of_the_best_must_be_programs() -> None:
    prose = "Nothing here is a program."
    assert are_code([FUNCTION] * 8 + [prose] * 2)
    assert not are_code([FUNCTION] * 7 + [prose] * 3)
    assert are_code([FUNCTION] * JUDGED + [prose] * 100)
    assert not are_code([])


def test_other_weights_are_another_sum_of_the_same_opinions() -> None:
    nearest = Neighbours(np.array([1, 2, 3]), np.array([0.9, 0.5, 0.1]))
    best = KeywordScores(np.array([1, 2, 3]), np.array([1.0, 3.0, 2.0]))
    even = rank_by_both(nearest, best, nearest, best)
    changed = even.reweighed({"vector": 2.0, "keyword": 0.0})
    assert changed.chunk_ids.tolist() == [1, 2, 3]
    assert {leg.name: leg.weight for leg in changed.legs} == {"vector": 2.0, "keyword": 0.0}
    for leg in changed.legs:
        assert dict(zip(changed.chunk_ids, leg.scores, strict=True)) == dict(
            zip(
                even.chunk_ids,
                next(one for one in even.legs if one.name == leg.name).scores,
                strict=True,
            )
        )
    again = changed.reweighed({"vector": 1.0, "keyword": 1.0})
    assert again.chunk_ids.tolist() == even.chunk_ids.tolist()
    assert again.scores == pytest.approx(even.scores)


# --- in a search ----------------------------------------------------------------------------------


@pytest.fixture
async def index(engine: AsyncEngine, settings: Settings) -> AsyncIterator[Index]:
    async with open_index(engine, settings) as opened:
        yield opened


async def test_among_programs_vectors_weigh_more(index: Index) -> None:
    await index.fill([f"def write_{number}(stream): return stream;" for number in range(12)])
    await index.fill(
        [f"The stream of number {number} is written." for number in range(12)], "prose"
    )
    query = "write a stream"
    code = await index.search(query, explain=True)
    assert (code.explanation or {})["weights"] == CODE_WEIGHTS
    prose = await index.search(query, "prose", explain=True)
    assert (prose.explanation or {})["weights"] == {"vector": 1.0, "keyword": 1.0}
    scores = [hit.score for hit in code.hits]
    assert scores == sorted(scores, reverse=True)
    # The order does not depend on how many hits are asked for.
    first = await index.search(query, limit=1)
    assert [hit.text for hit in first.hits] == [code.hits[0].text]
