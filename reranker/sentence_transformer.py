"""Any cross-encoder of sentence-transformers, on torch: the reference, and the runtime for a GPU.

torch and sentence-transformers are loaded with the first model, not with this module.
"""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from reranker.base import RerankerUnavailable, Scores, checked
from reranker.cross_encoder import DEFAULT_MAX_TOKENS, encodable, first_line


class TorchCrossEncoder:
    """A model that sentence-transformers runs, on the GPU when torch has one.

    Raises RerankerUnavailable when the folder holds no model that can be loaded without running
    code of its own, or one that gives more than a score.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        digest: str,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        device: str | None = None,
    ) -> None:
        self.name = name
        self.digest = digest
        try:
            self.model = _load(folder, device, max_tokens)
        except Exception as error:
            raise RerankerUnavailable(f"{name} cannot be loaded: {first_line(error)}") from error
        if self.model.num_labels != 1:
            raise RerankerUnavailable(
                f"{name} tells {self.model.num_labels} classes apart instead of giving a score"
            )
        # The tokenizer of transformers sets truncation and padding on shared state at every call.
        self._one_at_a_time = Lock()

    def score(self, query: str, passages: Sequence[str]) -> Scores:
        if not passages:
            return np.empty(0, np.float32)
        pairs = [(encodable(query), encodable(passage)) for passage in passages]
        try:
            with self._one_at_a_time:
                predicted = self.model.predict(pairs, show_progress_bar=False)
        except Exception as error:
            raise RerankerUnavailable(f"{self.name} failed: {first_line(error)}") from error
        return checked(np.asarray(predicted, np.float32), count=len(passages), name=self.name)

    def close(self) -> None:
        """Nothing is held but memory."""


def gpu_present() -> bool:
    from sentence_transformers.util import get_device_name  # noqa: PLC0415 - loads torch

    return get_device_name() != "cpu"


def _load(folder: Path, device: str | None, max_tokens: int) -> Any:
    from sentence_transformers import CrossEncoder  # noqa: PLC0415 - loads torch
    from sentence_transformers.util import get_device_name  # noqa: PLC0415 - loads torch
    from transformers.utils import logging  # noqa: PLC0415 - loads torch

    logging.disable_progress_bar()
    device = device or get_device_name()
    options: dict[str, Any] = {"use_safetensors": True}
    if device == "cpu":
        # Half precision saves nothing on a CPU: it is slower there, and less exact.
        options["dtype"] = "float32"
    model = CrossEncoder(
        str(folder),
        device=device,
        local_files_only=True,
        trust_remote_code=False,
        model_kwargs=options,
    )
    model.max_seq_length = min(max_tokens, model.max_seq_length or max_tokens)
    return model
