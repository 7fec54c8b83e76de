"""A cross-encoder on onnxruntime: it reads the query and a passage together, and says how well they fit.

Nothing here loads torch or transformers. `cross_encoder_export` writes the folder that this reads;
a folder that comes from elsewhere may have the same files.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import tokenizers
from numpy.typing import NDArray

from reranker.base import RerankerUnavailable, Scores, checked

GRAPH_FILE = "model.onnx"
INT8_GRAPH_FILE = "model.int8.onnx"
TOKENIZER_FILE = "tokenizer.json"
MANIFEST_FILE = "reranker.json"

DEFAULT_MAX_TOKENS = 160
"""Of a pair. Twenty pairs of this length take a MiniLM of six layers about 100 ms on two cores."""
DEFAULT_QUERY_TOKENS = 64

Activation = Literal["sigmoid", "identity"]

# How the tokenizers library calls what the exported graphs take.
INPUT_ATTRIBUTES = {
    "input_ids": "ids",
    "attention_mask": "attention_mask",
    "token_type_ids": "type_ids",
}


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a reader must know that neither the graph nor the tokenizer says.

    `max_tokens` is the length of a pair that the model reads, `query_tokens` what the query may
    have of it; `activation` turns what the graph gives into scores.
    """

    max_tokens: int
    query_tokens: int = DEFAULT_QUERY_TOKENS
    activation: Activation = "identity"

    @classmethod
    def read(cls, folder: Path) -> Self:
        return cls(**json.loads((folder / MANIFEST_FILE).read_text("utf-8")))

    def write(self, folder: Path) -> None:
        (folder / MANIFEST_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", "utf-8")


def is_exported(folder: Path) -> bool:
    """Whether the folder holds what CrossEncoder reads."""
    graphs = (folder / GRAPH_FILE, folder / INT8_GRAPH_FILE)
    others = (folder / TOKENIZER_FILE, folder / MANIFEST_FILE)
    return any(graph.is_file() for graph in graphs) and all(other.is_file() for other in others)


class CrossEncoder:
    """An exported model, in 8-bit integers where it comes in them.

    Every pair is computed by itself on a single core, `threads` at the same time: nothing is padded,
    cores never wait for each other, and a score does not depend on what else is asked.
    Raises RerankerUnavailable when the files are damaged.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        digest: str,
        threads: int,
        max_tokens: int = DEFAULT_MAX_TOKENS,
    ) -> None:
        self.name = name
        self.digest = digest
        try:
            manifest = Manifest.read(folder)
            int8 = folder / INT8_GRAPH_FILE
            self._session = open_session(int8 if int8.is_file() else folder / GRAPH_FILE)
            self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER_FILE))
            self._query_tokenizer = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        except Exception as error:
            raise RerankerUnavailable(f"{name} cannot be loaded: {first_line(error)}") from error
        self.max_tokens = min(max_tokens, manifest.max_tokens)
        self._query_tokens = min(manifest.query_tokens, self.max_tokens // 2)
        self._activation = manifest.activation
        # Configured once and never again: these settings are shared by all threads that encode.
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.max_tokens, strategy="only_second")  # pyright: ignore[reportUnknownMemberType]
        self._query_tokenizer.no_padding()
        self._query_tokenizer.no_truncation()
        self._inputs: list[str] = [given.name for given in self._session.get_inputs()]
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="reranking")

    def score(self, query: str, passages: Sequence[str]) -> Scores:
        scores = np.empty(len(passages), np.float32)
        try:
            shortened = self._shortened(encodable(query))
            pairs = self._tokenizer.encode_batch(
                [(shortened, encodable(passage)) for passage in passages]
            )

            def compute(place: int) -> None:
                (given,) = self._session.run(None, self._feeds(pairs[place]))
                scores[place] = given.reshape(-1)[0]

            # The longest first: no core is left with a long one when the others are done.
            order = sorted(range(len(pairs)), key=lambda place: -len(pairs[place]))
            for _ in self._pool.map(compute, order):
                pass
        except Exception as error:
            raise RerankerUnavailable(f"{self.name} failed: {first_line(error)}") from error
        if self._activation == "sigmoid":
            scores = sigmoid(scores)
        return checked(scores, count=len(passages), name=self.name)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _shortened(self, query: str) -> str:
        """So much of the query that most of the pair is left for the passage."""
        offsets = self._query_tokenizer.encode(query, add_special_tokens=False).offsets
        if len(offsets) <= self._query_tokens:
            return query
        return query[: offsets[self._query_tokens - 1][1]]

    def _feeds(self, pair: tokenizers.Encoding) -> dict[str, NDArray[np.int64]]:
        return {
            name: np.array([getattr(pair, INPUT_ATTRIBUTES[name])], np.int64)
            for name in self._inputs
        }


def encodable(text: str) -> str:
    """The text with lone surrogates, which no encoding carries, replaced."""
    return text.encode("utf-8", "replace").decode()


def sigmoid(values: Scores) -> Scores:
    """Of float32, without overflow: 1/(1+e^-x) = (1 + tanh(x/2)) / 2."""
    return np.float32(0.5) * (np.float32(1) + np.tanh(values / np.float32(2)))


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def open_session(graph: Path, optimized: Path | None = None) -> Any:
    """An onnxruntime session on one core of the CPU; writes the optimised graph when asked to."""
    import onnxruntime  # noqa: PLC0415  # pyright: ignore[reportMissingTypeStubs] - only where it runs

    runtime: Any = onnxruntime
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if optimized is not None:
        # The next level up would be bound to the processor of this machine.
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(optimized)
    return runtime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
