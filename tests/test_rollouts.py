"""Experiments on real answers: assigned, measured, halted, led back."""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from app.access import ALL_SCOPES, LOCAL_OWNER, Caller
from app.answering.base import Answer, Finished, Question, Usage
from app.answering.experimenting import ExperimentingAnswerer
from app.config import Settings
from app.errors import GenerationInterrupted, GenerationUnavailable, InvalidInput
from app.experiments.assignment import Arm
from app.experiments.guards import Tolerance
from app.experiments.outcomes import Outcome
from app.experiments.rollouts import Rollout, Rollouts
from tests.doubles.answerer import ANSWER, WHOLE, ScriptedAnswerer, Step
from tests.service import Service, open_service

PATH = "/api/admin/experiments"
BRIEF = {"name": "candidate", "prompt_version": "2"}
ASKED = Question("Who approves travel?", ("default",))


def caller(number: int) -> Caller:
    return Caller(tenant_id=1, scopes=ALL_SCOPES, key_id=UUID(int=number))


def caller_with(rollouts: Rollouts, place: int) -> Caller:
    """Somebody who gets the arm at this place."""
    for number in range(1000):
        assigned = rollouts.assign(caller(number))
        if assigned is not None and assigned.place == place:
            return caller(number)
    raise AssertionError("nobody gets it")


@dataclass
class Stage:
    """A service whose answers are scripted, with a running experiment."""

    service: Service
    inner: ScriptedAnswerer
    rollout: Rollout

    @property
    def rollouts(self) -> Rollouts:
        return self.service.resources.rollouts

    async def ask(self, who: Caller, question: Question = ASKED, *steps: Step) -> Answer | None:
        self.inner.steps = steps or WHOLE
        answerer = self.service.resources.answerer
        async with aclosing(answerer.answer(who, question)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    return event.answer
        return None

    async def report(self) -> dict[str, Any]:
        await self.rollouts.flush()
        found: dict[str, Any] = (
            await self.service.client.get(f"{PATH}/{self.rollout.name}")
        ).json()
        return found


@pytest.fixture
async def stage(service: Service) -> Stage:
    inner = ScriptedAnswerer()
    rollouts = service.resources.rollouts
    service.app.state.resources = replace(
        service.resources, answerer=ExperimentingAnswerer(inner, rollouts)
    )
    arms = [
        Arm("control"),
        Arm("brief", model="extractive", prompt_version="2", mode="vector", passages_count=3),
    ]
    rollout = await rollouts.begin(LOCAL_OWNER, "stage", arms, Tolerance())
    return Stage(service, inner, rollout)


async def test_the_arm_of_a_caller_changes_what_is_asked_and_the_answer_says_so(
    stage: Stage,
) -> None:
    answer = await stage.ask(caller_with(stage.rollouts, 1))
    question = stage.inner.questions[-1]
    assert (question.model, question.prompt_version) == ("extractive", "2")
    assert (question.retrieval.mode, question.retrieval.passages_count) == ("vector", 3)
    assert answer is not None
    assert answer.experiment is not None
    assert (answer.experiment.name, answer.experiment.arm) == ("stage", "brief")
    answer = await stage.ask(caller_with(stage.rollouts, 0))
    assert stage.inner.questions[-1] == ASKED
    assert answer is not None
    assert answer.experiment is not None
    assert answer.experiment.arm == "control"


async def test_a_question_that_names_its_model_takes_no_part(stage: Stage) -> None:
    who = caller_with(stage.rollouts, 1)
    named = replace(ASKED, model="llama3.1:8b")
    answer = await stage.ask(who, named)
    assert stage.inner.questions[-1] == named
    assert answer is not None
    assert answer.experiment is None


async def test_another_tenant_is_not_in_it(stage: Stage) -> None:
    other = replace(caller_with(stage.rollouts, 1), tenant_id=2)
    assert stage.rollouts.assign(other) is None


async def test_outcomes_are_counted_by_arm(stage: Stage) -> None:
    declined = replace(ANSWER, mode="declined", usage=Usage(cost=Decimal("0.25")))
    candidate, control = caller_with(stage.rollouts, 1), caller_with(stage.rollouts, 0)
    await stage.ask(candidate)
    await stage.ask(candidate, ASKED, Finished(declined))
    for error in (GenerationUnavailable("away"), RuntimeError("a bug")):
        with pytest.raises(type(error)):
            await stage.ask(candidate, ASKED, error)
    with pytest.raises(GenerationInterrupted):
        await stage.ask(control, ASKED, *WHOLE[:2], GenerationInterrupted("cut"))
    with pytest.raises(InvalidInput):  # the client's mistake
        await stage.ask(control, ASKED, InvalidInput("no such filter"))
    report = await stage.report()
    first, second = report["arms"]
    assert (first["arm"], first["answers"]) == ("control", 1)
    assert first["figures"]["errors"]["estimate"] == 1
    assert (second["arm"], second["answers"]) == ("brief", 4)
    assert second["figures"]["errors"]["estimate"] == 0.5
    assert second["figures"]["declined"]["estimate"] == 0.5
    assert second["figures"]["cost"]["estimate"] == 0.125
    assert second["difference"]["errors"]["estimate"] == -0.5
    assert second["figures"]["negative_feedback"] is None


async def test_a_reader_that_leaves_is_no_outcome(stage: Stage) -> None:
    who = caller_with(stage.rollouts, 1)
    stage.inner.steps = WHOLE
    async with aclosing(stage.service.resources.answerer.answer(who, ASKED)) as events:
        await anext(events)
    assert (await stage.report())["arms"][1]["answers"] == 0


async def test_feedback_counts_for_the_arm_that_gave_the_answer(stage: Stage) -> None:
    for _ in range(4):  # to everybody
        await stage.rollouts.advance(LOCAL_OWNER, "stage")
    client = stage.service.client
    reply = (await client.post("/api/chat", json={"question": "Who?"})).json()
    assert reply["experiment"] == {
        "id": str(stage.rollout.id),
        "name": "stage",
        "arm": "brief",
        "place": 1,
    }
    given = await client.post(
        "/api/feedback", json={"message_id": reply["message_id"], "rating": -1}
    )
    assert given.status_code == 201
    report = await stage.report()
    assert [arm["ratings"] for arm in report["arms"]] == [0, 1]
    assert report["arms"][1]["figures"]["negative_feedback"]["estimate"] == 1


async def test_a_failing_candidate_is_halted_and_everybody_is_as_before(stage: Stage) -> None:
    candidate, control = caller_with(stage.rollouts, 1), caller_with(stage.rollouts, 0)
    for _ in range(12):
        await stage.ask(control)
        with pytest.raises(GenerationUnavailable):
            await stage.ask(candidate, ASKED, GenerationUnavailable("away"))
    await stage.rollouts.flush()
    with capture_logs() as logs:
        async with asyncio.timeout(15):  # the service itself judges
            while stage.rollouts.assign(candidate) is not None:
                await asyncio.sleep(0.05)
    halts = [log for log in logs if log["event"] == "experiment_halted"]
    assert len(halts) == 1
    report = await stage.report()
    assert report["status"] == "halted"
    assert report["reason"] == "brief: errors: 12 of 12 instead of 0 of 12"
    await stage.ask(candidate)
    assert stage.inner.questions[-1] == ASKED


async def test_steps_in_their_order_then_rollback(service: Service) -> None:
    client = service.client
    begun = await client.post(PATH, json={"name": "brief", "candidates": [BRIEF]})
    assert begun.status_code == 201, begun.text
    assert (begun.json()["percent"], begun.json()["status"]) == (10, "running")
    steps = [(await client.post(f"{PATH}/brief/advance")).json()["percent"] for _ in range(4)]
    assert steps == [25, 50, 75, 100]
    beyond = await client.post(f"{PATH}/brief/advance")
    assert beyond.status_code == 409
    second = await client.post(PATH, json={"name": "other", "candidates": [BRIEF]})
    assert second.status_code == 409
    assert "runs already" in second.json()["detail"]
    assert service.resources.rollouts.assign(LOCAL_OWNER) is not None
    for _ in range(2):
        back = await client.post(f"{PATH}/brief/rollback")
        assert back.json()["status"] == "rolled_back"
    assert service.resources.rollouts.assign(LOCAL_OWNER) is None
    again = await client.post(f"{PATH}/brief/advance")
    assert again.status_code == 409
    assert "rolled_back" in again.json()["detail"]
    same = await client.post(PATH, json={"name": "brief", "candidates": [BRIEF]})
    assert same.status_code == 409
    other = await client.post(PATH, json={"name": "other", "candidates": [BRIEF]})
    assert other.status_code == 201
    listed = (await client.get(PATH)).json()["experiments"]
    assert [one["name"] for one in listed] == ["other", "brief"]
    assert (await client.post(f"{PATH}/other/finish")).json()["status"] == "finished"


async def test_a_broken_guard_keeps_an_experiment_from_its_next_step(stage: Stage) -> None:
    for place, failed in ((0, False), (1, True)):
        for _ in range(20):
            stage.rollouts.note(Outcome(stage.rollout.id, place, 10, failed=failed))
    await stage.rollouts.flush()
    reply = await stage.service.client.post(f"{PATH}/stage/advance")
    assert reply.status_code == 409
    assert (await stage.report())["percent"] == 10


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"candidates": [{"name": "a", "model": "gpt-9"}]}, "gpt-9"),
        ({"candidates": [{"name": "a", "prompt_version": "99"}]}, "prompt version '99'"),
        ({"candidates": [{"name": "a", "rerank": True}]}, "reranker"),
        ({"candidates": [{"name": "control"}]}, "same name"),
        ({"candidates": []}, "candidates"),
        ({"candidates": [{"name": "a", "mode": "keyword"}]}, "mode"),
        ({"candidates": [{"name": "a", "passages": 0}]}, "passages"),
        ({"candidates": [{"name": "a", "colour": "red"}]}, "colour"),
        ({"candidates": [BRIEF], "tolerance": {"errors": 2}}, "errors"),
        ({"candidates": [BRIEF], "tolerance": {"cost": 0.5}}, "cost"),
        ({"name": "../x", "candidates": [BRIEF]}, "name"),
    ],
)
async def test_arms_of_what_is_not_there_are_refused(
    service: Service, body: dict[str, Any], said: str
) -> None:
    reply = await service.client.post(PATH, json={"name": "new", **body})
    assert reply.status_code == 422, reply.text
    assert said in reply.json()["detail"]
    assert (await service.client.get(PATH)).json() == {"experiments": []}


async def test_what_is_not_there_is_not_found(service: Service) -> None:
    for method, path in (("GET", ""), ("POST", "/advance"), ("POST", "/rollback")):
        reply = await service.client.request(method, f"{PATH}/nothing{path}")
        assert reply.status_code == 404, path


async def test_two_processes_follow_each_other(stage: Stage, service_settings: Settings) -> None:
    async with open_service(service_settings) as other:
        follower = other.resources.rollouts
        async with asyncio.timeout(10):
            while follower.assign(caller(1)) is None:
                await asyncio.sleep(0.05)
        for number in range(50):
            assert follower.assign(caller(number)) == stage.rollouts.assign(caller(number))
        await stage.rollouts.roll_back(LOCAL_OWNER, "stage")
        async with asyncio.timeout(10):
            while follower.assign(caller(1)) is not None:
                await asyncio.sleep(0.05)
