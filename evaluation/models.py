"""A collection's embedding model against the one that it is to get, on questions about it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from app.commands.models import Verdict
    from evaluation.judging import Judge
    from evaluation.questions import GoldenSet

DECIDING = "nDCG@10"
HITS = 20


async def compare_models(client: httpx.AsyncClient, collection: str, questions: Path) -> "Verdict":
    """Ask the questions with both models, as any client would, and compare what they find.

    `questions` is a file of one's own, or the folder of a BEIR set that is in the collection.
    Raises InvalidInput for what cannot be read or is not there.
    """
    from app.commands.models import Verdict  # noqa: PLC0415 - `footnote` loads this for every command
    from evaluation.metrics import compare_runs  # noqa: PLC0415 - as above
    from evaluation.run import SEARCHES_AT_ONCE, Plan, each, open_golden  # noqa: PLC0415 - as above
    from evaluation.service import Service  # noqa: PLC0415 - as above

    service = Service(client)
    golden = _read(questions)
    judged = await open_golden(service, golden, collection, Plan())

    async def ask(query: tuple[str, str]) -> Sequence[list[str]]:
        query_id, text = query
        return [
            _units(
                judged.judge,
                query_id,
                await service.search(
                    collection, text, "hybrid", HITS, candidate_model=candidate_model
                ),
            )
            for candidate_model in (False, True)
        ]

    found = await each(judged.queries.items(), ask, SEARCHES_AT_ONCE, _silent, "search")
    before, after = (
        {query_id: units[which] for query_id, units in zip(judged.queries, found, strict=True)}
        for which in (0, 1)
    )
    judgements = {query_id: judged.judge.judgements[query_id] for query_id in judged.queries}
    compared = compare_runs(judgements, before, after, (DECIDING,))[DECIDING]
    return Verdict(
        measure=DECIDING,
        questions=len(judged.queries),
        before=compared.before.mean,
        after=compared.after.mean,
        gain=compared.gain.mean,
        gain_low=compared.gain.low,
        gain_high=compared.gain.high,
    )


def _units(judge: "Judge", query_id: str, hits: "Sequence[dict[str, object]]") -> list[str]:
    return judge.units(query_id, hits)


def _read(questions: Path) -> "GoldenSet":
    from evaluation.datasets import load_dataset  # noqa: PLC0415 - as above
    from evaluation.questions import (  # noqa: PLC0415 - as above
        Expectation,
        GoldenQuestion,
        GoldenSet,
        load_golden_set,
    )

    if not questions.is_dir():
        return load_golden_set(questions)
    dataset = load_dataset(questions)
    names = {one.id: one.title or one.id for one in dataset.documents}
    return GoldenSet(
        questions,
        [
            GoldenQuestion(
                query_id,
                text,
                tuple(
                    Expectation(0, grade, document=names[document_id])
                    for document_id, grade in dataset.judgements[query_id].items()
                    if grade > 0 and document_id in names
                ),
            )
            for query_id, text in dataset.queries.items()
        ],
        rejected=0,
    )


def _silent(_step: str, _done: int, _total: int) -> None: ...
