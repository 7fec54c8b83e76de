"""Nothing stale and nothing of others, whatever changes in between; and that this test can tell."""

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from app.cache import keys
from app.cache.keys import AnswerKey, ChunksKey, EmbeddingKey, Key, ParaphraseKey
from tests.cache_world import Interleavings

KINDS: tuple[type[Key], ...] = (EmbeddingKey, ChunksKey, AnswerKey, ParaphraseKey)
COMPONENTS = [(kind, field.name) for kind in KINDS for field in fields(kind)]  # pyright: ignore[reportArgumentType]
# An answer from other passages than those at hand may also cite one that is not among them.
FOUND_OUT = (AssertionError, IndexError)


def run(max_examples: int) -> None:
    run_state_machine_as_test(
        seed(7)(Interleavings),
        settings=settings(
            max_examples=max_examples,
            stateful_step_count=30,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_answers_are_those_of_the_world_as_it_is_now() -> None:
    Interleavings.outcomes.clear()
    run(900)
    told = Interleavings.outcomes
    assert min(told[f"{what} hit"] for what in ("chunks", "answer", "paraphrase")) > 50, told


@pytest.mark.parametrize(
    ("kind", "name"), COMPONENTS, ids=[f"{kind.__name__}.{name}" for kind, name in COMPONENTS]
)
def test_a_key_that_lacks_a_component_is_found_out(
    kind: type[Key], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = keys.components_of

    def lacking(key: Key) -> dict[str, Any]:
        left_out = name if isinstance(key, kind) else ""
        return {part: one for part, one in complete(key).items() if part != left_out}

    monkeypatch.setattr(keys, "components_of", lacking)
    with pytest.raises(FOUND_OUT):
        run(3_000)
