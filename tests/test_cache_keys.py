"""Keys: every component tells, and nothing that must not tell does."""

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cache import keys
from app.cache.code import code_digest
from app.cache.codec import pack, unpack
from app.cache.keys import (
    AnswerKey,
    ChunksKey,
    EmbeddingKey,
    Key,
    ParaphraseKey,
    history_digest,
    normalise,
)
from app.llm.base import Message

EMBEDDING = EmbeddingKey(model="m1", kind="query", text="who?")
CHUNKS = ChunksKey(
    embedding=b"e1",
    tenant=1,
    access=(("staff",), {"year": 2024}),
    collections=[(1, 5)],
    settings=("hybrid", 8),
    wording=("who",),
)
ANSWER = AnswerKey(
    question="who?",
    history=b"h1",
    tenant=1,
    prompt=("1", b"c"),
    model=("m", "e"),
    options={"temperature": 0.0, "seed": 0},
    evidence=[b"a", b"b"],
)
PARAPHRASE = ParaphraseKey.of(ANSWER, (frozenset({"staff"}), ("handbook",), {}))
OTHERS: dict[type[Key], dict[str, Any]] = {
    EmbeddingKey: {"model": "m2", "kind": "document", "text": "who"},
    ChunksKey: {
        "embedding": b"e2",
        "tenant": 2,
        "access": (("staff",), {"year": 2025}),
        "collections": [(1, 6)],
        "settings": ("hybrid", 9),
        "wording": ("whom",),
    },
    AnswerKey: {
        "question": "whom?",
        "history": b"h2",
        "tenant": 2,
        "prompt": ("2", b"c"),
        "model": ("n", "e"),
        "options": {"temperature": 0.5, "seed": 0},
        "evidence": [b"b", b"a"],
    },
    ParaphraseKey: {
        "history": b"h2",
        "tenant": 2,
        "scope": (None, ("handbook",), {}),
        "prompt": ("2", b"c"),
        "model": ("n", "e"),
        "options": {"temperature": 0.5, "seed": 0},
        "evidence": [b"b", b"a"],
    },
}
KEYS = (EMBEDDING, CHUNKS, ANSWER, PARAPHRASE)
COMPONENTS = [(key, field.name) for key in KEYS for field in fields(key)]


@pytest.mark.parametrize(("key", "name"), COMPONENTS)
def test_every_component_makes_another_key(key: Any, name: str) -> None:
    other = replace(key, **{name: OTHERS[type(key)][name]})
    assert other.digest != key.digest
    assert replace(other, **{name: getattr(key, name)}).digest == key.digest


@pytest.mark.parametrize(("key", "name"), COMPONENTS)
def test_without_a_component_two_values_would_share_a_key(
    key: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: it does when the component is left out."""
    complete = keys.components_of

    def lacking(one: Key) -> dict[str, Any]:
        return {part: value for part, value in complete(one).items() if part != name}

    monkeypatch.setattr(keys, "components_of", lacking)
    assert replace(key, **{name: OTHERS[type(key)][name]}).digest == key.digest


def test_kinds_of_keys_never_meet() -> None:
    assert len({key.digest for key in KEYS}) == len(KEYS)


def test_a_paraphrase_has_all_of_an_answer_in_common_but_the_question() -> None:
    names = {field.name for field in fields(AnswerKey)} - {"question"}
    assert {field.name for field in fields(ParaphraseKey)} - {"scope"} == names
    for name in names:
        assert getattr(PARAPHRASE, name) is getattr(ANSWER, name)


def test_components_do_not_run_into_each_other() -> None:
    assert EmbeddingKey("ab", "c", "d").digest != EmbeddingKey("a", "bc", "d").digest
    one = replace(CHUNKS, collections=[(1, 2), (3, 4)])
    assert one.digest != replace(CHUNKS, collections=[(1, 2, 3, 4)]).digest  # pyright: ignore[reportArgumentType]


def test_the_order_of_sets_and_mappings_does_not_tell_and_that_of_evidence_does() -> None:
    one = replace(CHUNKS, access=(None, {"a": {"$in": [1, 2]}, "b": 1}))
    other = replace(CHUNKS, access=(None, {"b": 1, "a": {"$in": [1, 2]}}))
    assert one.digest == other.digest
    assert replace(ANSWER, evidence=[b"a"]).digest != ANSWER.digest
    assert replace(CHUNKS, access=frozenset("ab")).digest == (
        replace(CHUNKS, access=frozenset("ba")).digest
    )


@pytest.mark.parametrize("value", [1, True, 1.0, "1", b"1", None, (1,), {"1": 1}], ids=repr)
def test_values_that_look_alike_differ(value: Any) -> None:
    alike = [1, True, 1.0, "1", b"1", None, (1,), {"1": 1}]
    same = [one for one in alike if keys.digest_of(one) == keys.digest_of(value)]
    assert len(same) == 1


def test_normalising_takes_composition_case_and_white_space() -> None:
    assert normalise("  Who\u00a0\n approves\tCafe\u0301 ") == "who approves café"
    assert normalise("İ") == normalise(normalise("İ"))
    assert normalise("Who", fold_case=False) == "Who"


def test_normalising_takes_nothing_else() -> None:
    for one, other in [("who?", "who"), ("naïve", "naive"), ("1,000", "1000"), ("ﬁ", "fi")]:
        assert normalise(one) != normalise(other)


@given(st.text())
def test_normalising_twice_is_normalising_once(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_history_tells_to_the_letter() -> None:
    one = history_digest([Message("user", "Who?"), Message("assistant", "Ada.")])
    assert one != history_digest([Message("user", "who?"), Message("assistant", "Ada.")])
    assert one != history_digest([Message("assistant", "Who?"), Message("user", "Ada.")])
    assert one != history_digest([Message("user", "Who?Ada.")])
    assert history_digest([]) != one


def test_a_packed_value_comes_back_and_rubbish_does_not() -> None:
    value = (1, "two", b"three", (4.5, None, ("six",)))
    assert unpack(pack(value)) == value
    for rubbish in (b"", b"\xc1", b"\x93\x01"):
        with pytest.raises(ValueError, match="not a packed value"):
            unpack(rubbish)


def test_the_code_counts_as_it_is_written() -> None:
    assert code_digest("app.cache.keys") == code_digest("app.cache.keys")
    assert code_digest("app.cache.keys") != code_digest("app.cache.codec")
    assert code_digest("app.cache") != code_digest("app.cache.keys")
    with pytest.raises(ModuleNotFoundError):
        code_digest("app.nowhere")
