"""The last look at vectors before anybody stores or compares them."""

import numpy as np

from app.embedding.base import Vectors
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
