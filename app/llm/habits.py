"""What is expected of a request before it is sent, by its model: how much it reads and writes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from app.llm.base import Completion, Message
from app.llm.estimates import Estimate, OutputLengths
from app.llm.prefixes import Beginnings, beginnings

PRIOR_CHARS_PER_TOKEN = 4.0
MOST_MODELS = 64
ENOUGH_ANSWERS = 8


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is known of a prompt before it is read."""

    chars: int
    tokens: float
    beginnings: Beginnings = ()


@dataclass(slots=True)
class _Habit:
    lengths: OutputLengths = field(default_factory=OutputLengths)
    answers_count: int = 0
    chars_per_token: Estimate = field(default_factory=lambda: Estimate(PRIOR_CHARS_PER_TOKEN))


class Habits:
    def __init__(self) -> None:
        self._by_model: dict[str, _Habit] = {}

    def expect(
        self, model: str, messages: Sequence[Message], max_tokens: int
    ) -> tuple[Prompt, float]:
        """The prompt, and the tokens of the answer."""
        habit = self._of(model)
        chars = sum(len(one.content) for one in messages)
        prompt = Prompt(chars, chars / habit.chars_per_token.value, beginnings(messages))
        return prompt, min(float(max_tokens), habit.lengths.expected())

    def knows(self, model: str) -> bool:
        """Whether enough answers were seen to refuse a request for the wait that they predict."""
        return self._of(model).answers_count >= ENOUGH_ANSWERS

    def lengths(self, model: str) -> OutputLengths:
        return self._of(model).lengths

    def add(self, model: str, prompt: Prompt, completion: Completion) -> None:
        habit = self._of(model)
        habit.answers_count += 1
        if completion.completion_tokens:
            habit.lengths.add(completion.completion_tokens)
        if completion.prompt_tokens and prompt.chars:
            habit.chars_per_token.add(prompt.chars / completion.prompt_tokens)

    def _of(self, model: str) -> _Habit:
        if model not in self._by_model and len(self._by_model) >= MOST_MODELS:
            del self._by_model[next(iter(self._by_model))]
        return self._by_model.setdefault(model, _Habit())
