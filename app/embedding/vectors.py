"""The last look at vectors before anybody stores or compares them."""

from collections.abc import Sequence

import numpy as np

from app.embedding.base import TokenVectors, Vectors
from app.errors import EmbeddingUnavailable

LENGTH_TOLERANCE = 0.01


def unit_vectors(vectors: Vectors, *, count: int, dimensions: int) -> Vectors:
    """`vectors` unchanged, once it is certain that they are `count` unit vectors.

    Raises EmbeddingUnavailable for another shape, and for a vector that is not finite or whose
    length is not 1: one NaN in an index makes every comparison with it meaningless.
    """
    if vectors.shape != (count, dimensions):
        raise EmbeddingUnavailable(
            f"The embedding model gave an array of shape {vectors.shape} "
            f"instead of {(count, dimensions)}."
        )
    lengths = np.linalg.norm(vectors, axis=1)
    if not np.all(np.abs(lengths - 1.0) < LENGTH_TOLERANCE):
        raise EmbeddingUnavailable("The embedding model gave a vector that is not of length 1.")
    return vectors


def token_vectors(
    offsets: Sequence[tuple[int, int]],
    special: Sequence[int],
    states: Vectors,
    prompt_chars: int,
) -> TokenVectors:
    """The text's own tokens with unit vectors, of all that the model was given.

    `offsets` count from the start of the prompt, which is `prompt_chars` long; `special` marks
    the tokens that the tokenizer added. Row i of `states` is token i.
    """
    kept = [
        place
        for place, ((start, end), added) in enumerate(zip(offsets, special, strict=True))
        if not added and end > start >= prompt_chars
    ]
    own = states[kept]
    lengths = np.linalg.norm(own, axis=1, keepdims=True)
    if not np.isfinite(lengths).all():
        raise EmbeddingUnavailable("The embedding model gave a token vector that is not finite.")
    return TokenVectors(
        [(offsets[place][0] - prompt_chars, offsets[place][1] - prompt_chars) for place in kept],
        np.divide(own, lengths, out=np.zeros_like(own), where=lengths > 0),
    )
