"""Opens a cross-encoder by name or path, on the runtime that suits it."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import reranker
from reranker.base import Reranker, RerankerUnavailable
from reranker.cross_encoder import (
    GRAPH_FILE,
    INT8_GRAPH_FILE,
    MANIFEST_FILE,
    TOKENIZER_FILE,
    CrossEncoder,
    first_line,
    is_exported,
)
from reranker.sentence_transformer import TorchCrossEncoder, gpu_present

EXPORT_FORMAT = "reranker-1"
"""Changes with what an export holds, so that no version reads what another one wrote."""
EXPORT_TIMEOUT_SECONDS = 900.0

Runtime = Literal["auto", "onnx", "torch"]

_WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
_OTHERS = (
    "config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "*/config.json",
    "*/model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",
)
_EXPORTED = (GRAPH_FILE, INT8_GRAPH_FILE, TOKENIZER_FILE, MANIFEST_FILE)


def open_cross_encoder(
    name: str,
    *,
    cache: Path,
    runtime: Runtime,
    int8: bool,
    threads: int,
    max_tokens: int,
) -> Reranker:
    """A cross-encoder, loaded. Slow the first time a model is seen: it is exported then.

    `cache` is the folder that exports are kept in. Raises RerankerUnavailable when the model is
    not there or cannot be loaded.
    """
    folder = _locate(name)
    digest = _digest(folder)
    if Path(name).expanduser().is_dir():
        name = folder.name  # whoever searches may read it, and need not know where things lie
    if is_exported(folder):
        if runtime == "torch":
            raise RerankerUnavailable(f"{name} is made for onnxruntime; torch cannot run it")
        return CrossEncoder(
            folder, name=name, digest=digest, threads=threads, max_tokens=max_tokens
        )
    if not _matching(folder, _WEIGHTS):
        raise RerankerUnavailable(
            f"{name} has no safetensors weights; pickled ones can run code and are never loaded"
        )
    if runtime == "torch" or (runtime == "auto" and gpu_present()):
        return TorchCrossEncoder(folder, name=name, digest=digest, max_tokens=max_tokens)
    target = cache / digest / f"{EXPORT_FORMAT}{'-int8' if int8 else ''}"
    if target.is_dir():
        try:
            return CrossEncoder(
                target, name=name, digest=digest, threads=threads, max_tokens=max_tokens
            )
        except RerankerUnavailable:  # a damaged file: it is made anew
            shutil.rmtree(target, ignore_errors=True)
    refusal = _export(folder, target, int8=int8)
    if refusal is None:
        return CrossEncoder(
            target, name=name, digest=digest, threads=threads, max_tokens=max_tokens
        )
    if runtime == "onnx":
        raise RerankerUnavailable(f"{name} cannot run on onnxruntime: {refusal}")
    return TorchCrossEncoder(folder, name=name, digest=digest, max_tokens=max_tokens)


def _locate(name: str) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.absolute()
    if name.startswith((".", "~", os.sep)) or "/" not in name:
        raise RerankerUnavailable(f"{name} is not a folder that exists")
    return _locate_on_hub(name)


def _locate_on_hub(name: str) -> Path:
    from huggingface_hub import (  # noqa: PLC0415 - slow to import, and seldom needed
        snapshot_download,  # pyright: ignore[reportUnknownVariableType]
    )

    wanted = [*_WEIGHTS, *_OTHERS]
    try:
        # A cached copy is used as it is: a newer one would order passages in another way.
        cached = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
        if _matching(cached, _WEIGHTS):
            return cached
    except Exception:  # noqa: BLE001, S110 - whatever is wrong with the cache, download it
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["onnx/*"]))
    except Exception as error:
        raise RerankerUnavailable(
            f"{name} is not on this machine and could not be downloaded: {first_line(error)}"
        ) from error


def _digest(folder: Path) -> str:
    """Hex SHA-256 over the names and contents of all files that decide the scores."""
    digest = hashlib.sha256()
    for path in _matching(folder, (*_WEIGHTS, *_OTHERS, *_EXPORTED)):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})


def _export(folder: Path, target: Path, *, int8: bool) -> str | None:
    """Export in a child process, whose memory of torch goes with it; why it was refused."""
    options = [] if int8 else ["--float32"]
    command = [sys.executable, "-P", "-m", "reranker.cross_encoder_export", *options, "--"]
    command += [str(folder), str(target)]
    # The child must find this very package, whatever lies in the working directory.
    path = [str(Path(reranker.__path__[0]).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, and paths after the options
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=EXPORT_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"its export did not finish: {error}"
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return None
