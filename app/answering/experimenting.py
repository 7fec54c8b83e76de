"""Answers under an experiment: the question as the caller's arm has it, and what came of it."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from time import perf_counter

from app.access import Caller
from app.answering.base import (
    Answerer,
    AnswerEvent,
    Finished,
    InExperiment,
    Question,
    TextDelta,
)
from app.errors import FootnoteError, GenerationInterrupted, Unavailable
from app.experiments.assignment import Arm
from app.experiments.outcomes import Outcome
from app.experiments.rollouts import Assigned, Rollouts
from app.language_models import AUTO


class ExperimentingAnswerer:
    """Implements Answerer around another one, which sees nothing but a changed question.

    A question that asks for a model itself takes no part.
    """

    def __init__(self, answerer: Answerer, rollouts: Rollouts) -> None:
        self._answerer = answerer
        self._rollouts = rollouts

    def answer(self, caller: Caller, question: Question) -> AsyncGenerator[AnswerEvent]:
        assigned = self._rollouts.assign(caller) if question.model == AUTO else None
        if assigned is None:
            return self._answerer.answer(caller, question)
        return self._observed(caller, question, assigned)

    async def _observed(
        self, caller: Caller, question: Question, assigned: Assigned
    ) -> AsyncGenerator[AnswerEvent]:
        rollout = assigned.rollout
        outcome = Outcome(rollout.id, assigned.place, rollout.percent)
        started = perf_counter()
        ttft_ms: float | None = None
        try:
            events = self._answerer.answer(caller, changed(question, assigned.arm))
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, TextDelta) and ttft_ms is None:
                        ttft_ms = (perf_counter() - started) * 1000
                    if isinstance(event, Finished):
                        note = InExperiment(
                            str(rollout.id), rollout.name, assigned.arm.name, assigned.place
                        )
                        answer = replace(event.answer, experiment=note)
                        self._rollouts.note(
                            replace(
                                outcome,
                                declined=answer.mode == "declined",
                                ttft_ms=ttft_ms,
                                cost=answer.usage.cost,
                            )
                        )
                        yield Finished(answer)
                    else:
                        yield event
        except Exception as error:
            if _is_ours(error):
                self._rollouts.note(replace(outcome, failed=True, ttft_ms=ttft_ms))
            raise


def changed(question: Question, arm: Arm) -> Question:
    """The question as the arm has it; what the arm leaves open stays as it is."""
    retrieval = question.retrieval
    return replace(
        question,
        model=question.model if arm.model is None else arm.model,
        prompt_version=arm.prompt_version or question.prompt_version,
        retrieval=replace(
            retrieval,
            mode=arm.mode or retrieval.mode,
            rerank=retrieval.rerank if arm.rerank is None else arm.rerank,
            passages_count=arm.passages_count or retrieval.passages_count,
        ),
    )


def _is_ours(error: Exception) -> bool:
    """Whether it went wrong here, and not in what the client sent."""
    if isinstance(error, FootnoteError):
        return isinstance(error, Unavailable | GenerationInterrupted)
    return True
