"""Makes of an exported model one that computes in 8-bit integers: faster, and nearly as exact.

`python -m app.embedding.int8 EXPORT TARGET` runs this in a process of its own, as the export is.

What is rounded are the weights of the matrix products, and their inputs anew for every text. The
embeddings, the attention between tokens and everything around stay in floating point. Two things
keep the vectors what they were. A product whose inputs differ in size by channel has the large ones
made smaller and their weights larger by as much, before either is rounded. And a product that brings
a wide layer back has inputs a few of which dwarf all others, so both sides are rounded block by
block: slower than a scale for everything, and the only way that such a text is not rounded away.
"""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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

LIKENESS_COSINE = 0.99
"""Between the vectors of both, on average. Less says that a model does not bear the rounding; what
it costs in the end, only an evaluation tells."""

SMOOTHING = 0.7
"""How much of the differences between inputs goes over to the weights: alpha of SmoothQuant (Xiao et
al., 2023, equation 4). Of 0.3 to 0.8 this left the bundled model's vectors nearest to the exact ones."""

BLOCK = 64
"""So many inputs share a scale where products are rounded block by block. With 32 the vectors were
hardly nearer, with 128 a little further away."""

_LEAST = 1e-5
_RANGE = 127
_ZERO = 128

Weights = NDArray[np.float32]


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
        _quantize(export, graph)
        open_session(graph, optimized=folder / GRAPH_FILE)
    exact, rounded = _vectors(export), _vectors(folder)
    cosine = float(np.einsum("ij,ij->i", exact, rounded).mean())
    if cosine < LIKENESS_COSINE:
        raise ExportRefused(f"it does not bear 8-bit integers (cosine {cosine:.3f})")


def _quantize(export: Path, target: Path) -> None:
    from onnxruntime import quantization  # noqa: PLC0415  # pyright: ignore[reportMissingTypeStubs] - as `_onnx`

    onnx = _onnx()
    library: Any = quantization
    model = onnx.load(str(export / GRAPH_FILE))
    products = _Products(model)
    products.smooth(_largest_inputs(export, products.inputs, target.parent))
    products.round_wide_ones()
    prepared = target.with_suffix(".prepared")
    onnx.save(model, str(prepared))
    library.quantize_dynamic(
        str(prepared),
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


class _Products:
    """The matrix products of a graph by constant weights, of shape (inputs, outputs)."""

    def __init__(self, model: Any) -> None:
        self._graph = model.graph
        self._opsets = model.opset_import
        self._constants = {constant.name: constant for constant in self._graph.initializer}
        self._nodes = [
            node
            for node in self._graph.node
            if node.op_type == "MatMul" and node.input[1] in self._constants
        ]

    @property
    def inputs(self) -> list[str]:
        """The names of what is multiplied, each once."""
        return list(dict.fromkeys(node.input[0] for node in self._nodes))

    def smooth(self, largest: dict[str, Weights]) -> None:
        """Even out the inputs by channel; `largest` holds the largest that each channel had."""
        for name in self.inputs:
            users = [node for node in self._nodes if node.input[0] == name]
            weights = [self._weights(node) for node in users]
            heaviest = np.max([np.abs(one).max(axis=1) for one in weights], axis=0)
            scales = np.maximum(largest[name], _LEAST) ** SMOOTHING
            scales /= np.maximum(heaviest, _LEAST) ** (1 - SMOOTHING)
            scales /= np.exp(np.log(scales).mean())
            smoothed = f"{name}_smoothed"
            self._add(f"{smoothed}_by", (1 / scales).astype(np.float32))
            even = _onnx().helper.make_node(
                "Mul", [name, f"{smoothed}_by"], [smoothed], name=smoothed
            )
            self._graph.node.insert(list(self._graph.node).index(users[0]), even)
            for node, matrix in zip(users, weights, strict=True):
                node.input[0] = smoothed
                node.input[1] = self._add(
                    f"{node.name}_smoothed", (matrix * scales[:, None]).astype(np.float32)
                )

    def round_wide_ones(self) -> None:
        """Round block by block what has more inputs than outputs."""
        for node in self._nodes:
            weights = self._weights(node)
            inputs_count, outputs_count = weights.shape
            if inputs_count <= outputs_count or inputs_count % BLOCK:
                continue
            integers, scales = _rounded(weights)
            blockwise = _onnx().helper.make_node(
                "MatMulNBits",
                [
                    node.input[0],
                    self._add(f"{node.name}_integers", integers),
                    self._add(f"{node.name}_scales", scales),
                ],
                list(node.output),
                name=f"{node.name}_blockwise",
                domain="com.microsoft",
                K=inputs_count,
                N=outputs_count,
                bits=8,
                block_size=BLOCK,
                accuracy_level=4,  # the inputs are rounded too
            )
            self._graph.node.insert(list(self._graph.node).index(node), blockwise)
            self._graph.node.remove(node)
        if all(opset.domain != "com.microsoft" for opset in self._opsets):
            self._opsets.append(_onnx().helper.make_opsetid("com.microsoft", 1))

    def _weights(self, node: Any) -> Weights:
        return _onnx().numpy_helper.to_array(self._constants[node.input[1]])

    def _add(self, name: str, values: NDArray[Any]) -> str:
        self._graph.initializer.append(_onnx().numpy_helper.from_array(values, name))
        self._constants[name] = self._graph.initializer[-1]
        return name


def _onnx() -> Any:
    import onnx  # noqa: PLC0415 - heavy; reached only when there is something to round

    return onnx


def _rounded(weights: Weights) -> tuple[NDArray[np.uint8], Weights]:
    """As MatMulNBits takes them: integers of shape (outputs, blocks, BLOCK), one scale a block."""
    inputs_count, outputs_count = weights.shape
    blocks = weights.T.reshape(outputs_count, inputs_count // BLOCK, BLOCK)
    scales = np.maximum(np.abs(blocks).max(axis=2), _LEAST) / _RANGE
    integers = np.rint(blocks / scales[:, :, None]) + _ZERO
    return integers.astype(np.uint8), scales.astype(np.float32).ravel()


def _largest_inputs(export: Path, names: Sequence[str], scratch: Path) -> dict[str, Weights]:
    """The largest value that each channel of these tensors has, over texts of all kinds."""
    onnx = _onnx()
    model = onnx.load(str(export / GRAPH_FILE))
    for name in names:
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    watched = scratch / "watched.onnx"
    onnx.save(model, str(watched))
    embedder = _open(export)
    session = open_session(watched)
    largest: dict[str, Weights] = {}
    for text in PARITY_TEXTS:
        made = session.run(list(names), embedder.feeds([text], "document"))
        for name, values in zip(names, made, strict=True):
            found: Weights = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0)
            largest[name] = np.maximum(largest[name], found) if name in largest else found
    return largest


def _vectors(export: Path) -> Vectors:
    embedder = _open(export)
    kinds: tuple[TextKind, ...] = ("query", "document")
    return np.concatenate([embedder.embed(PARITY_TEXTS, kind) for kind in kinds])


def _open(export: Path) -> OnnxEmbedder:
    return OnnxEmbedder(
        export, name=str(export), digest="", threads=1, batch_tokens=PARITY_BATCH_TOKENS
    )


if __name__ == "__main__":
    try:
        quantize_export(Path(sys.argv[1]), Path(sys.argv[2]))
    except ExportRefused as refusal:
        sys.exit(str(refusal))
