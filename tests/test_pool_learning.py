"""What the pool learns and how it chooses: pure functions of what they were told."""

from math import exp
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.llm.base import Completion, Durations, Message
from app.llm.choice import Demand, Line, plan
from app.llm.estimates import Estimate, OutputLengths, Spread
from app.llm.habits import Habits
from app.llm.hedging import SHARE, HedgeBudget
from app.llm.instance_model import InstanceModel
from app.llm.lanes import Lanes, OwnerLimits
from app.llm.prefixes import BLOCK_CHARS, PrefixMemory, beginnings


def completion(
    prompt_tokens: int = 100,
    completion_tokens: int = 40,
    *,
    load_seconds: float = 0.0,
    prompt_seconds: float = 0.1,
    completion_seconds: float = 1.0,
) -> Completion:
    total = load_seconds + prompt_seconds + completion_seconds
    return Completion(
        "model",
        "stop",
        prompt_tokens,
        completion_tokens,
        durations=Durations(total, load_seconds, prompt_seconds, completion_seconds),
    )


# --- estimates -----------------------------------------------------------------------------------


def test_the_first_sample_replaces_the_prior() -> None:
    estimate = Estimate(1.0)
    estimate.add(0.01)
    assert estimate.value == pytest.approx(0.01)


def test_one_outlier_moves_nothing() -> None:
    estimate = Estimate(1.0)
    for _ in range(10):
        estimate.add(0.01)
    estimate.add(5.0)
    assert estimate.value == pytest.approx(0.01)


def test_a_tenfold_change_is_learnt_from_two_samples() -> None:
    estimate = Estimate(1.0)
    for _ in range(50):
        estimate.add(0.01)
    estimate.add(0.1)
    estimate.add(0.1)
    assert estimate.value == pytest.approx(0.1)


def test_outliers_on_both_sides_are_noise() -> None:
    estimate = Estimate(1.0)
    for _ in range(10):
        estimate.add(0.01)
    for sample in (0.1, 0.001, 0.1, 0.001):
        estimate.add(sample)
    assert estimate.value == pytest.approx(0.01)


def test_who_is_doubted_is_taken_at_its_next_word() -> None:
    estimate = Estimate(1.0)
    for _ in range(10):
        estimate.add(0.01)
    estimate.doubt()
    assert estimate.value == pytest.approx(0.01)
    estimate.add(0.2)
    assert estimate.value == pytest.approx(0.2)


def test_noise_of_a_third_is_averaged_out() -> None:
    random, estimate = Random(1), Estimate(1.0)
    for _ in range(200):
        estimate.add(0.02 * random.uniform(0.7, 1.3))
    assert estimate.value == pytest.approx(0.02, rel=0.2)


def test_a_percentile_of_a_prediction_is_passed_about_so_often() -> None:
    random, spread = Random(1), Spread()
    for _ in range(500):
        spread.add(1.0, exp(random.gauss(0.1, 0.3)))
    later = [exp(random.gauss(0.1, 0.3)) for _ in range(5000)]
    passed = sum(value > spread.factor(2.33) for value in later) / len(later)
    assert passed < 0.03


# --- how long answers are ------------------------------------------------------------------------


def test_what_is_left_is_the_mean_of_the_longer_ones() -> None:
    lengths = OutputLengths(prior=())
    for tokens in (10, 20, 30, 100):
        lengths.add(tokens)
    assert lengths.expected() == pytest.approx(40)
    assert lengths.expected(20) == pytest.approx(45)
    assert lengths.expected(99) == pytest.approx(1)
    assert lengths.expected(200) == pytest.approx(50)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=300), st.integers(0, 600))
def test_an_answer_under_way_is_never_expected_to_be_over(seen: list[int], written: int) -> None:
    lengths = OutputLengths(prior=())
    for tokens in seen:
        lengths.add(tokens)
    assert lengths.expected(written) >= 1
    longer = [tokens - written for tokens in seen[-256:] if tokens > written]
    if longer:
        assert lengths.expected(written) == pytest.approx(max(1, sum(longer) / len(longer)))


def test_the_prior_gives_way_to_what_was_seen() -> None:
    lengths = OutputLengths()
    for _ in range(4):
        lengths.add(7)
    assert lengths.expected() == pytest.approx(7)


def test_the_size_of_a_prompt_follows_from_its_characters() -> None:
    habits = Habits()
    question = [Message("user", "x" * 1000)]
    prompt, tokens = habits.expect("model", question, 64)
    assert (prompt.tokens, tokens) == (pytest.approx(250), pytest.approx(64))
    for _ in range(9):
        habits.add("model", prompt, completion(prompt_tokens=500, completion_tokens=20))
    prompt, tokens = habits.expect("model", question, 64)
    assert (prompt.tokens, tokens) == (pytest.approx(500), pytest.approx(20))
    assert habits.knows("model")
    assert not habits.knows("another")


# --- the speed of a server -----------------------------------------------------------------------


def test_speeds_are_learnt_from_what_the_server_says() -> None:
    model = InstanceModel()
    for _ in range(5):
        model.add_completion(completion(200, prompt_seconds=0.4), expected_cached=0)
        model.add_tokens(0.05, 1)
    assert model.first_token_seconds(100) == pytest.approx(0.2, abs=0.01)
    assert model.token_seconds(1) == pytest.approx(0.05)


def test_reading_that_was_cached_does_not_count_as_speed() -> None:
    model = InstanceModel()
    model.add_completion(completion(200, prompt_seconds=0.4), expected_cached=0)
    cached = model.add_completion(completion(200, prompt_seconds=0.1), expected_cached=150)
    assert cached == pytest.approx(150)
    assert model.prompt_token_seconds == pytest.approx(0.002)
    cached = model.add_completion(completion(200, prompt_seconds=0.4), expected_cached=150)
    assert cached == 0
    assert model.prompt_token_seconds == pytest.approx(0.002)


def test_loading_is_learnt_only_from_real_loads() -> None:
    model = InstanceModel()
    prior = model.load_seconds
    model.add_completion(completion(load_seconds=0.02), expected_cached=0)
    assert model.load_seconds == prior
    model.add_completion(completion(load_seconds=4.0), expected_cached=0)
    assert model.load_seconds == pytest.approx(4.0)


def test_what_company_costs_is_learnt_beside_the_speed() -> None:
    random, model = Random(2), InstanceModel()
    for _ in range(600):
        together = random.randint(1, 4)
        model.add_tokens(0.02 * (1 + 0.3 * (together - 1)) * random.uniform(0.95, 1.05), together)
    for together in (1, 2, 4):
        expected = 0.02 * (1 + 0.3 * (together - 1))
        assert model.token_seconds(together) == pytest.approx(expected, rel=0.15)


def test_a_first_token_has_no_deadline_until_some_have_been_seen() -> None:
    model = InstanceModel()
    assert model.first_token_within(0.2, 2.33) is None
    for _ in range(20):
        model.add_first_token(0.2, 0.22)
    within = model.first_token_within(0.2, 2.33)
    assert within is not None
    assert 0.2 < within < 0.5


# --- the choice ----------------------------------------------------------------------------------


def lines(**free_in_seconds: list[float]) -> list[Line[str]]:
    return [Line(name, sorted(seconds)) for name, seconds in free_in_seconds.items()]


def test_it_goes_where_it_is_over_first() -> None:
    planned = plan([Demand("a", (3.0, 1.0, 2.0))], lines(x=[0.0], y=[0.0], z=[0.0]))
    assert planned.placed == [("a", "y")]


def test_of_equals_the_first_is_chosen() -> None:
    planned = plan([Demand("a", (1.0, 1.0))], lines(x=[0.0], y=[0.0]))
    assert planned.placed == [("a", "x")]


def test_a_busy_server_is_waited_for_when_that_is_sooner_by_a_tenth() -> None:
    held = plan([Demand("a", (1.0, 5.0))], lines(fast=[1.0], slow=[0.0]))
    assert held.placed == []
    assert held.has_held
    assert held.waits_seconds == [("a", 1.0)]
    placed = plan([Demand("a", (1.0, 2.1))], lines(fast=[1.0], slow=[0.0]))
    assert placed.placed == [("a", "slow")]


def test_nobody_is_held_for_longer_than_half_of_what_it_would_take_at_once() -> None:
    late = Demand("a", (1.0, 5.0), held_seconds=2.0)
    assert plan([late], lines(fast=[1.0], slow=[0.0])).placed == [("a", "slow")]


def test_under_overload_no_slot_stays_idle() -> None:
    planned = plan([Demand("a", (1.0, 5.0))], lines(fast=[1.0], slow=[0.0]), may_hold=False)
    assert planned.placed == [("a", "slow")]


def test_who_stands_behind_a_held_one_takes_the_slower_server() -> None:
    demands = [Demand(name, (1.0, 3.0)) for name in "abc"]
    planned = plan(demands, lines(fast=[0.5], slow=[0.0]))
    assert planned.placed == [("c", "slow")]


def test_a_server_that_failed_the_request_is_left_out() -> None:
    planned = plan([Demand("a", (None, 9.0))], lines(fast=[0.0], slow=[0.0]))
    assert planned.placed == [("a", "slow")]


@given(st.data())
def test_no_plan_gives_a_server_more_than_its_free_slots(data: st.DataObject) -> None:
    slots = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=5))
    free = [data.draw(st.integers(0, count)) for count in slots]
    given_lines = [
        Line(index, [0.0] * idle + [1.0] * (count - idle))
        for index, (count, idle) in enumerate(zip(slots, free, strict=True))
    ]
    work = st.one_of(st.none(), st.floats(0.01, 100))
    rows = data.draw(
        st.lists(st.lists(work, min_size=len(slots), max_size=len(slots)), max_size=12)
    )
    demands = [Demand(index, row) for index, row in enumerate(rows)]
    planned = plan(demands, given_lines, may_hold=data.draw(st.booleans()))
    placed = [server for _, server in planned.placed]
    assert all(placed.count(index) <= idle for index, idle in enumerate(free))
    assert len({request for request, _ in planned.placed}) == len(planned.placed)


# --- the cache of a server -----------------------------------------------------------------------


def test_a_prompt_shares_what_it_begins_with() -> None:
    memory = PrefixMemory()
    system = Message("system", "s" * BLOCK_CHARS * 4)
    memory.add(beginnings([system, Message("user", "a" * BLOCK_CHARS)]), slots=1)
    other = beginnings([system, Message("user", "b" * BLOCK_CHARS)])
    assert memory.shared_chars(other) == BLOCK_CHARS * 4
    assert memory.shared_chars(beginnings([Message("user", "b" * 9999)])) == 0
    memory.forget()
    assert memory.shared_chars(other) == 0


def test_a_server_holds_as_many_prompts_as_it_has_slots() -> None:
    memory = PrefixMemory()
    prompts = [beginnings([Message("user", letter * BLOCK_CHARS)]) for letter in "abc"]
    for prompt in prompts:
        memory.add(prompt, slots=2)
    assert [memory.shared_chars(prompt) > 0 for prompt in prompts] == [False, True, True]


def test_a_longer_prompt_takes_the_slot_of_the_one_it_goes_on_with() -> None:
    memory = PrefixMemory()
    other = beginnings([Message("user", "z" * BLOCK_CHARS)])
    first = [Message("user", "a" * BLOCK_CHARS * 3)]
    memory.add(other, slots=2)
    memory.add(beginnings(first), slots=2)
    memory.add(beginnings([*first, Message("assistant", "b" * BLOCK_CHARS)]), slots=2)
    assert memory.shared_chars(other) > 0


# --- lanes, owners, hedges -----------------------------------------------------------------------


def test_interactive_goes_before_batch_and_who_came_first_before_who_came_later() -> None:
    lanes = Lanes[str]()
    for name, lane in (("b1", "batch"), ("i1", "interactive"), ("b2", "batch"), ("i2", None)):
        lanes.join(name, "batch" if lane == "batch" else "interactive")
    assert list(lanes) == ["i1", "i2", "b1", "b2"]
    assert (lanes.ahead("interactive"), lanes.ahead("batch")) == (2, 4)
    lanes.join("again", "interactive", in_front=True)
    assert next(iter(lanes)) == "again"
    assert lanes.leave("b1", "batch")
    assert not lanes.leave("b1", "batch")


def test_an_owner_runs_only_so_many_at_once() -> None:
    owners = OwnerLimits(concurrency=2, tokens_per_minute=0)
    owners.begin("key")
    assert owners.has_room("key")
    owners.begin("key")
    assert not owners.has_room("key")
    assert owners.has_room("other")
    assert owners.has_room("")
    owners.end("key")
    assert owners.has_room("key")
    owners.processes = 2
    assert not owners.has_room("key")


def test_tokens_come_back_with_time() -> None:
    owners = OwnerLimits(concurrency=0, tokens_per_minute=600)
    assert owners.seconds_until_tokens("key", now=0) == 0
    owners.charge("key", 700, now=0)
    assert owners.seconds_until_tokens("key", now=0) == pytest.approx(10)
    assert owners.seconds_until_tokens("key", now=10) == pytest.approx(0)
    owners.charge("key", -700, now=10)
    assert owners.seconds_until_tokens("key", now=10) == 0
    assert owners.seconds_until_tokens("other", now=0) == 0


def test_one_request_in_fifty_may_be_sent_twice() -> None:
    budget, spent = HedgeBudget(), 0
    for _ in range(1000):
        budget.earn()
        if not budget.is_spent:
            budget.spend()
            spent += 1
    assert spent <= 1000 * SHARE + 1
