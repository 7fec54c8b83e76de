"""Makes of an exported model one that computes in 8-bit integers: faster, and nearly as exact.

`python -m app.embedding.int8 EXPORT TARGET` runs this in a process of its own, as the export is.

What is rounded are the weights of the matrix products, each output channel on a scale of its own;
the activations are rounded anew for every text ("dynamic"), so nothing has to be calibrated. The
embeddings, the attention between tokens and everything around stay in floating point.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from app.embedding.base import TextKind, Vectors
from app.embedding.onnx import (
    GRAPH_FILE,
    MANIFEST_FILE,
    TOKENIZER_FILE,
    OnnxEmbedder,
    open_session,
)
from app.embedding.onnx_export import (
    PARITY_BATCH_TOKENS,
    PARITY_TEXTS,
    ExportRefused,
    write_once,
)

LIKENESS_COSINE = 0.95
"""Between the vectors of both, on average. Less says that a model does not bear the rounding; what
it costs in the end, only an evaluation tells."""


def quantize_export(export: Path, target: Path) -> None:
    """Write the int8 form of `export` as the folder `target`, unless it is there already.

    Raises ExportRefused when its vectors have become others.
    """
    write_once(target, lambda folder: _write(export, folder))


def _write(export: Path, folder: Path) -> None:
    for name in (TOKENIZER_FILE, MANIFEST_FILE):
        shutil.copyfile(export / name, folder / name)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        graph = Path(scratch) / GRAPH_FILE
        _quantize(export / GRAPH_FILE, graph)
        open_session(graph, optimized=folder / GRAPH_FILE)
    exact, rounded = _vectors(export), _vectors(folder)
    cosine = float(np.einsum("ij,ij->i", exact, rounded).mean())
    if cosine < LIKENESS_COSINE:
        raise ExportRefused(f"it does not bear 8-bit integers (cosine {cosine:.3f})")


def _quantize(graph: Path, target: Path) -> None:
    import onnx  # noqa: PLC0415 - heavy; reached only when there is something to round
    from onnxruntime import quantization  # noqa: PLC0415  # pyright: ignore[reportMissingTypeStubs] - as above

    library: Any = quantization
    library.quantize_dynamic(
        str(graph),
        str(target),
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        # Signed weights; all of their range, which processors with VNNI do not overflow.
        weight_type=library.QuantType.QInt8,
        reduce_range=False,
        extra_options={
            "MatMulConstBOnly": True,
            # Of tensors behind operators that only onnxruntime knows.
            "DefaultTensorType": onnx.TensorProto.FLOAT,
        },
    )


def _vectors(export: Path) -> Vectors:
    embedder = OnnxEmbedder(
        export, name=str(export), digest="", threads=1, batch_tokens=PARITY_BATCH_TOKENS
    )
    kinds: tuple[TextKind, ...] = ("query", "document")
    return np.concatenate([embedder.embed(PARITY_TEXTS, kind) for kind in kinds])


if __name__ == "__main__":
    try:
        quantize_export(Path(sys.argv[1]), Path(sys.argv[2]))
    except ExportRefused as refusal:
        sys.exit(str(refusal))
