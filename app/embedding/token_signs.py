"""What late interaction keeps of a text: the signs of the vectors of its telling tokens.

Signs are taken around the mean of a model's token vectors, because what all tokens share tells
nothing. That mean is a constant of the model, taken over the texts below: the mean of a collection
would change with each document, and all that was stored before would be of another one.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from app.embedding.base import TextKind, TokenEmbedder, TokenVectors

# As generous as the index terms are: an identifier is one word, whatever the model makes of it.
_WORD = re.compile(r"\w+(?:[.'’\-]\w+)*(?:\+\+|#)?")

# Of as many kinds as possible: their mean decides for texts of all kinds. Changing a letter of them
# makes other signs, so `SIGNS_VERSION` changes with them.
_MEAN_TEXTS = (
    (
        "The storehouse opens at seven. Whoever arrives first switches on the lights, reads the "
        "temperature of both cold rooms and writes it into the book."
    ),
    (
        "Employees may carry over up to five days of annual leave into the first quarter of the next "
        "year, provided that their manager agrees in writing before the end of December."
    ),
    (
        "To reset a password, open the settings of the account, choose security and follow the link "
        "that is sent by e-mail. The link is valid for thirty minutes and can be used once."
    ),
    (
        "def read_lines(path, encoding='utf-8'):\n    with open(path, encoding=encoding) as file:\n"
        "        return [line.rstrip('\\n') for line in file if not line.startswith('#')]"
    ),
    (
        "The boundary layer on a flat plate becomes turbulent when the Reynolds number exceeds a "
        "critical value; heat transfer then rises sharply and the velocity profile becomes fuller."
    ),
    (
        "In the spring of 1848 crowds gathered in the capitals of Europe. Kings promised "
        "constitutions, ministers fled, and by the autumn most of what had been won was lost again."
    ),
    (
        "Patients who received the treatment had a lower rate of infection than the control group "
        "(4.1 % against 9.7 %); the difference was significant, and no severe side effects were seen."
    ),
    (
        "A library that classifies its books by subject lets readers browse, while an index of "
        "authors and titles serves those who know what they are looking for."
    ),
    (
        "ERROR 2024-03-05 12:41:07 worker[17]: connection to database lost, retrying in 5 seconds "
        "(attempt 3 of 10, code ECONNRESET)"
    ),
    (
        "The company's revenue grew by twelve percent to 3.4 billion dollars in the second quarter, "
        "while costs for energy and transport weighed on its margin."
    ),
    "How long may a guest stay without a visa, and which papers must be shown at the border?",
    (
        "Add the onions and fry them until they are golden, stir in the rice, then pour the stock "
        "over it little by little; serve with parsley and grated cheese."
    ),
)
SIGNS_VERSION = 1


@dataclass(frozen=True, slots=True)
class TokenSigns:
    """The tokens of a text that tell something.

    `signs` are packed bits, uint8, shape (tokens, bytes a token); `words` are the words that the
    tokens belong to.
    """

    signs: NDArray[np.uint8]
    words: tuple[str, ...]


def pack_signs(vectors: NDArray[np.float32], mean: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A bit for each dimension: whether it is above the mean; the last byte is filled with zeros."""
    return np.packbits(vectors > mean, axis=1)


class TokenReader:
    """Reads tokens with an embedding model. Calls block; safe from several threads at once.

    `tells` says of a word whether it is told about in the index: stop words are not.
    """

    def __init__(self, embedder: TokenEmbedder, tells: Callable[[str], bool]) -> None:
        self._embedder = embedder
        self._tells = tells
        self._mean: NDArray[np.float32] | None = None
        self._measuring = Lock()

    def read(self, texts: Sequence[str], kind: TextKind) -> list[TokenSigns]:
        """The telling tokens of each text; raises EmbeddingUnavailable."""
        _, tokens = self._embedder.embed_with_tokens(texts, kind)
        return [self.signs(text, own) for text, own in zip(texts, tokens, strict=True)]

    def signs(self, text: str, tokens: TokenVectors) -> TokenSigns:
        """The same for a text whose token vectors are known."""
        words = [text[start:end] for start, end in word_spans(text, tokens.spans)]
        telling = {word: self._tells(word) for word in dict.fromkeys(words)}
        places = [place for place, word in enumerate(words) if telling[word]]
        return TokenSigns(
            pack_signs(tokens.vectors[places], self.mean()),
            tuple(words[place] for place in places),
        )

    def mean(self) -> NDArray[np.float32]:
        """What signs are taken around; measured once."""
        with self._measuring:
            if (mean := self._mean) is None:
                _, tokens = self._embedder.embed_with_tokens(_MEAN_TEXTS, "document")
                mean = self._mean = np.concatenate([one.vectors for one in tokens]).mean(axis=0)
            return mean


def word_spans(text: str, tokens: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The word around each token; the token's own span where it is in none, as punctuation is."""
    words = [match.span() for match in _WORD.finditer(text)]
    starts = [start for start, _ in words]
    found: list[tuple[int, int]] = []
    for start, end in tokens:
        place = bisect_right(starts, start) - 1
        found.append(words[place] if place >= 0 and words[place][1] > start else (start, end))
    return found
