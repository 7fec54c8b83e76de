"""A tokenizer whose tokens are words and marks: fast, and easy to count by eye."""

import re
from collections.abc import Sequence

_TOKEN = re.compile(r"\w+|[^\w\s]")


class WordTokenizer:
    def spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        return [[match.span() for match in _TOKEN.finditer(text)] for text in texts]
