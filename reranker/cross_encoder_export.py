"""Turns a cross-encoder of sentence-transformers into what `cross_encoder` reads, and compares them.

`python -m reranker.cross_encoder_export MODEL TARGET [--float32] [--max-tokens N]` runs this in a
process of its own, so that the memory of torch is gone when the service starts. A reason for
refusing is the last line on stderr.
"""

import argparse
import fcntl
import logging
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from reranker.base import RerankerUnavailable, Scores
from reranker.cross_encoder import (
    DEFAULT_QUERY_TOKENS,
    GRAPH_FILE,
    INPUT_ATTRIBUTES,
    INT8_GRAPH_FILE,
    TOKENIZER_FILE,
    Activation,
    CrossEncoder,
    Manifest,
    open_session,
)
from reranker.sentence_transformer import TorchCrossEncoder

PARITY = 1e-3
"""The most that a score may differ from torch's, as a share of their spread."""
INT8_CORRELATION = 0.9
"""Between the scores of both. Less says that a model does not bear the rounding; what it costs in the
end, only an evaluation tells."""
READ_TOKENS = 512
"""The longest pair that an export is made for."""

PARTIAL_PREFIX = ".partial-"

_PROSE = (
    "The storehouse opens at seven. Whoever arrives first switches on the lights, reads the "
    "temperature of both cold rooms and writes it into the book; 4 to 6 °C is right, above 8 °C "
    "somebody must be called at once (see section 12.3). "
)
PARITY_QUERIES = ("When does the storehouse open?", "cold", "how to weigh a crate in Python")
PARITY_PASSAGES = (
    "cold",
    "The storehouse opens at seven.",
    "Übergabe um 06:30 – naïve façade, 冷蔵室の温度は何度ですか。 Привет, ¿qué tal?",
    "def weigh(crate): return sum(item.grams for item in crate) / 1000  # kilograms",
    "| room | °C |\n|---|---|\n| north | 4.5 |\n| south | 5.1 |\n",
    "Nobody may sign for a delivery that was not counted: a missing crate cannot be claimed later.",
    "Opening a bank account takes an identity card and half an hour.",
    *(_PROSE * repeats for repeats in (1, 2, 3, 40)),
)


class ExportRefused(Exception):
    """The model cannot run on onnxruntime with the scores that it has on torch."""


def export_model(model: Path, target: Path, *, int8: bool, max_tokens: int = READ_TOKENS) -> None:
    """Write the export of `model` as the folder `target`, unless it is there already.

    Several processes may start this at once: one works, the others wait for it. `target` appears
    whole or not at all. Raises ExportRefused, and RerankerUnavailable when torch has no use for
    the model either.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel, however this process ends
        if target.is_dir():
            return
        for leftover in target.parent.glob(f"{PARTIAL_PREFIX}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=target.parent))
        try:
            _write(model, partial, int8=int8, max_tokens=max_tokens)
            partial.chmod(0o755)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _write(model: Path, folder: Path, *, int8: bool, max_tokens: int) -> None:
    reference = TorchCrossEncoder(
        model, name=str(model), digest="", max_tokens=max_tokens, device="cpu"
    )
    expected = _scores(reference)
    own = reference.model.tokenizer
    fast = getattr(own, "backend_tokenizer", own)
    if not hasattr(fast, "to_str"):
        raise ExportRefused("its tokenizer is not one of the tokenizers library")
    (folder / TOKENIZER_FILE).write_text(fast.to_str(), "utf-8")
    longest = int(min(max_tokens, reference.model.max_seq_length or max_tokens))
    Manifest(
        max_tokens=longest,
        query_tokens=min(DEFAULT_QUERY_TOKENS, longest // 2),
        activation=_activation(reference.model),
    ).write(folder)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        traced = Path(scratch) / GRAPH_FILE
        _trace(reference.model, traced)
        open_session(traced, optimized=folder / GRAPH_FILE)
        exact = _scores(_open(folder))
        difference = float(np.max(np.abs(exact - expected)))
        if difference > PARITY * max(float(np.ptp(expected)), np.finfo(np.float32).tiny):
            raise ExportRefused(f"its scores differ from torch's by up to {difference:.5f}")
        if int8:
            _round(traced, folder / INT8_GRAPH_FILE)
            correlation = float(np.corrcoef(_scores(_open(folder)), exact)[0, 1])
            if correlation >= INT8_CORRELATION:
                (folder / GRAPH_FILE).unlink()
            else:
                (folder / INT8_GRAPH_FILE).unlink()


def _scores(model: CrossEncoder | TorchCrossEncoder) -> Scores:
    return np.concatenate([model.score(query, PARITY_PASSAGES) for query in PARITY_QUERIES])


def _open(folder: Path) -> CrossEncoder:
    return CrossEncoder(folder, name=str(folder), digest="", threads=1, max_tokens=READ_TOKENS)


def _activation(model: Any) -> Activation:
    import torch  # noqa: PLC0415 - heavy; reached only when there is something to export

    known: dict[type, Activation] = {torch.nn.Sigmoid: "sigmoid", torch.nn.Identity: "identity"}
    activation: object = model.activation_fn
    found = known.get(type(activation))
    if found is None:
        raise ExportRefused(f"its activation {type(activation).__name__} is not exported")
    return found


def _trace(model: Any, target: Path) -> None:
    """Write the graph from tokens to scores, before the activation."""
    import torch  # noqa: PLC0415 - heavy; reached only when there is something to export
    from sentence_transformers.base.modules import (  # noqa: PLC0415 - loads torch
        Dense,
        Transformer,
    )

    unknown = [type(part).__name__ for part in model if not isinstance(part, Transformer | Dense)]
    if unknown or not isinstance(model[0], Transformer):
        raise ExportRefused(f"it has parts that are not exported: {', '.join(unknown)}")
    # Two pairs of different lengths, so that no axis and no mask looks constant to the tracer.
    features: dict[str, Any] = model.preprocess(
        [("a query", "a text"), ("another", "a somewhat longer text that says more")]
    )
    inputs = [name for name, value in features.items() if isinstance(value, torch.Tensor)]
    if not set(inputs) <= INPUT_ATTRIBUTES.keys():
        raise ExportRefused(f"it takes inputs that are not exported: {', '.join(inputs)}")
    constants = {name: value for name, value in features.items() if name not in inputs}

    class PairScores(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            given = dict(zip(inputs, tensors, strict=True))
            return self.model({**constants, **given})["scores"].reshape(-1)

    # Plain attention gives a smaller and faster graph than torch's fused one does when traced.
    model[0].model.set_attn_implementation("eager")
    axes = {0: "pairs", 1: "tokens"}
    with torch.inference_mode(), warnings.catch_warnings():
        # The exporter warns of its own age and of every shape it reads; parity is what counts.
        warnings.simplefilter("ignore")
        torch.onnx.export(  # pyright: ignore[reportUnknownMemberType]
            PairScores().eval(),
            tuple(features[name] for name in inputs),
            str(target),
            dynamo=False,
            input_names=inputs,
            output_names=["scores"],
            dynamic_axes={**dict.fromkeys(inputs, axes), "scores": {0: "pairs"}},
        )


def _round(graph: Path, target: Path) -> None:
    """Weights in 8-bit integers, a scale for each output channel; activations as they come."""
    from onnxruntime import quantization  # noqa: PLC0415  # pyright: ignore[reportMissingTypeStubs] - loads onnx

    library: Any = quantization
    # It advises, on the root logger, to prepare the graph in a way that it cannot then read.
    logging.getLogger().setLevel(logging.ERROR)
    # Of the traced graph: the optimised one has operators whose types it does not know.
    library.quantize_dynamic(
        str(graph),
        str(target),
        op_types_to_quantize=["MatMul", "Gather"],
        per_channel=True,
        weight_type=library.QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Export a cross-encoder to onnxruntime.")
    parser.add_argument("model", type=Path, help="a folder that sentence-transformers reads")
    parser.add_argument("target", type=Path, help="the folder to write")
    parser.add_argument("--float32", action="store_true", help="no 8-bit integers")
    parser.add_argument("--max-tokens", type=int, default=READ_TOKENS, help="the longest pair")
    given = parser.parse_args()
    try:
        export_model(given.model, given.target, int8=not given.float32, max_tokens=given.max_tokens)
    except (ExportRefused, RerankerUnavailable) as refusal:
        sys.exit(str(refusal))
