"""Text to tokens through the tokenizers library alone: neither torch nor transformers is loaded."""

import re
from collections.abc import Callable, Sequence
from functools import cached_property

import tokenizers

_SURROGATES = re.compile("[\ud800-\udfff]")


def encodable(text: str) -> str:
    """The text, at the same length, with lone surrogates (which no encoding carries) replaced."""
    return _SURROGATES.sub("\ufffd", text)


class ModelTokenizer:
    """The model's own tokens with their places in the text. Safe from several threads at once."""

    def __init__(self, load: Callable[[], tokenizers.Tokenizer]) -> None:
        """Take `load`, which gives a tokenizer that nobody else configures.

        It is called at first use, which a service that only searches has none of.
        """
        self._load = load

    @cached_property
    def _tokenizer(self) -> tokenizers.Tokenizer:
        tokenizer = self._load()
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        encodings = self._tokenizer.encode_batch(
            [encodable(text) for text in texts], add_special_tokens=False
        )
        return [encoding.offsets for encoding in encodings]
