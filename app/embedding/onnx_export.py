"""Turns a sentence-transformers model into what `onnx` reads, and proves that nothing changed.

`python -m app.embedding.onnx_export MODEL TARGET` runs this in a process of its own, so that the
memory of torch is gone when the service starts. A reason for refusing is the last line on stderr.
"""

import fcntl
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from app.embedding.base import TextKind
from app.embedding.onnx import (
    GRAPH_FILE,
    INPUT_ATTRIBUTES,
    TOKENIZER_FILE,
    TOKENS_OUTPUT,
    VECTORS_OUTPUT,
    Manifest,
    OnnxEmbedder,
    open_session,
)
from app.embedding.sentence_transformer import SentenceTransformerEmbedder

PARITY_COSINE = 0.9999
PARITY_BATCH_TOKENS = 4096
"""More than is used in service, so that texts of different lengths meet in padded batches."""

PARTIAL_PREFIX = ".partial-"

_PROSE = (
    "The storehouse opens at seven. Whoever arrives first switches on the lights, reads the "
    "temperature of both cold rooms and writes it into the book; 4 to 6 °C is right, above 8 °C "
    "somebody must be called at once (see section 12.3). Deliveries are counted before they are "
    "signed for: a missing crate cannot be claimed later. "
)
PARITY_TEXTS = (
    "cold",
    "When does the storehouse open?",
    "Übergabe um 06:30 – naïve façade, 冷蔵室の温度は何度ですか。 Привет, ¿qué tal?",
    "def weigh(crate): return sum(item.grams for item in crate) / 1000  # kilograms",
    "| room | °C |\n|---|---|\n| north | 4.5 |\n| south | 5.1 |\n",
    *(_PROSE * repeats for repeats in (1, 2, 3, 5, 40)),
)


class ExportRefused(Exception):
    """The model cannot run on onnxruntime with the vectors it has on torch."""


def export_model(model: Path, target: Path) -> None:
    """Write the export of `model` as the folder `target`, unless it is there already.

    Raises ExportRefused, and EmbeddingUnavailable when torch has no use for the model either.
    """
    write_once(target, lambda folder: _write(model, folder))


def write_once(target: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a folder that becomes `target`, unless that is there already.

    Several processes may start this at once: one works, the others wait for it. `target` appears
    whole or not at all.
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
            write(partial)
            partial.chmod(0o755)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _write(model: Path, folder: Path) -> None:
    reference = SentenceTransformerEmbedder(model, name=str(model), digest="", device="cpu")
    kinds: tuple[TextKind, ...] = ("query", "document")
    expected = np.concatenate([reference.embed(PARITY_TEXTS, kind) for kind in kinds])

    reference.copy_of_tokenizer().save(str(folder / TOKENIZER_FILE))
    pad_id: int | None = getattr(reference.model.tokenizer, "pad_token_id", None)
    Manifest(
        dimensions=reference.dimensions,
        max_tokens=reference.max_tokens,
        pad_id=pad_id or 0,
        prompts=reference.prompts,
    ).write(folder)
    _write_graph(reference.model, reference.dimensions, folder)

    exported = OnnxEmbedder(
        folder, name=str(model), digest="", threads=1, batch_tokens=PARITY_BATCH_TOKENS
    )
    actual = np.concatenate([exported.embed(PARITY_TEXTS, kind) for kind in kinds])
    cosine = float(np.min(np.sum(expected * actual, axis=1)))
    if cosine < PARITY_COSINE:
        raise ExportRefused(f"its vectors differ from torch's (cosine {cosine:.5f})")


def _write_graph(model: Any, dimensions: int, folder: Path) -> None:
    import torch  # noqa: PLC0415 - heavy; reached only when there is something to export
    from sentence_transformers.base.modules import (  # noqa: PLC0415 - loads torch
        Dense,
        Normalize,
        Transformer,
    )
    from sentence_transformers.sentence_transformer.modules import (  # noqa: PLC0415 - loads torch
        Pooling,
    )

    unknown = [
        type(module).__name__
        for module in model
        if not isinstance(module, Transformer | Pooling | Dense | Normalize)
    ]
    if unknown or not isinstance(model[0], Transformer):
        raise ExportRefused(f"it has parts that are not exported: {', '.join(unknown)}")

    # Two texts of different lengths, so that no axis and no mask looks constant to the tracer.
    features: dict[str, Any] = model.preprocess(["a text", "another, somewhat longer text"])
    inputs = [name for name, value in features.items() if isinstance(value, torch.Tensor)]
    if not set(inputs) <= INPUT_ATTRIBUTES.keys():
        raise ExportRefused(f"it takes inputs that are not exported: {', '.join(inputs)}")
    constants = {name: value for name, value in features.items() if name not in inputs}

    class VectorsAndTokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            given = dict(zip(inputs, tensors, strict=True))
            made = self.model({**constants, **given})
            pooled = made["sentence_embedding"][:, :dimensions]
            return torch.nn.functional.normalize(pooled, dim=1), made["token_embeddings"]

    # Plain attention gives a smaller and faster graph than torch's fused one does when traced.
    model[0].auto_model.set_attn_implementation("eager")
    axes = {0: "texts", 1: "tokens"}
    with (
        tempfile.TemporaryDirectory(dir=folder) as scratch,
        torch.inference_mode(),
        warnings.catch_warnings(),
    ):
        traced = Path(scratch) / "traced.onnx"
        # The exporter warns of its own age and of every shape it reads; parity is what counts.
        warnings.simplefilter("ignore")
        torch.onnx.export(  # pyright: ignore[reportUnknownMemberType]
            VectorsAndTokens().eval(),
            tuple(features[name] for name in inputs),
            str(traced),
            dynamo=False,
            input_names=inputs,
            output_names=[VECTORS_OUTPUT, TOKENS_OUTPUT],
            dynamic_axes={
                **dict.fromkeys([*inputs, TOKENS_OUTPUT], axes),
                VECTORS_OUTPUT: {0: "texts"},
            },
        )
        open_session(traced, optimized=folder / GRAPH_FILE)


if __name__ == "__main__":
    try:
        export_model(Path(sys.argv[1]), Path(sys.argv[2]))
    except ExportRefused as refusal:
        sys.exit(str(refusal))
