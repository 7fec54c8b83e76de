"""Opens the configured embedding model on the runtime that suits it."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import structlog

import app
from app.config import Settings
from app.embedding.base import TokenEmbedder
from app.embedding.model_folder import INT8, ModelIdentity, identify
from app.embedding.onnx import OnnxEmbedder
from app.embedding.rounded_queries import RoundedQueries
from app.embedding.sentence_transformer import SentenceTransformerEmbedder
from app.errors import EmbeddingUnavailable
from app.telemetry import DEGRADED

EXPORT_FORMAT = "onnx-2"
"""Changes with what an export holds, so that no version reads what another one wrote."""

EXPORT_TIMEOUT_SECONDS = 900.0

log = structlog.get_logger(__name__)


class _NoExport(Exception):
    """The model cannot run on onnxruntime here; the message says why."""


def open_embedder(settings: Settings, *, threads: int | None = None) -> TokenEmbedder:
    """The configured model, loaded. Slow the first time a model is seen: it is exported then.

    `threads` bounds the cores that one call of `embed` uses (default: all that this process may).
    Raises EmbeddingUnavailable when the model is not there or cannot be loaded.
    """
    return open_model(settings, identify(settings.embedding_model), threads=threads)


def open_model(
    settings: Settings, model: ModelIdentity, *, threads: int | None = None
) -> TokenEmbedder:
    """The same for a model that need not be the configured one."""
    cores = threads or usable_cores()
    if model.is_int8:
        # Nothing else computes in integers, whatever runtime the settings ask for.
        try:
            return _open_exported(settings, model, cores)
        except _NoExport as reason:
            raise EmbeddingUnavailable(
                f"The embedding model {model.name} cannot be made: {reason}.",
                hint=f"Use it without {INT8}.",
            ) from reason
    if settings.embedding_runtime != "torch":
        try:
            embedder = _open_exported(settings, model, cores)
        except _NoExport as reason:
            if settings.embedding_runtime == "onnx":
                raise EmbeddingUnavailable(
                    f"The embedding model {model.name} cannot run on onnxruntime: {reason}.",
                    hint="Set FOOTNOTE_EMBEDDING_RUNTIME=auto to let torch run it.",
                ) from reason
            log.warning("embedding_runs_on_torch", model=model.name, reason=str(reason))
            DEGRADED.labels("embedding").set(1)
        else:
            DEGRADED.labels("embedding").set(0)
            return embedder
    return SentenceTransformerEmbedder(model.folder, name=model.name, digest=model.digest)


def open_for_questions(
    settings: Settings, model: ModelIdentity | None = None, *, threads: int | None = None
) -> TokenEmbedder:
    """A model (the configured one) for a service: its questions are computed in 8-bit integers.

    Unless the settings or the model forbid it. Raises EmbeddingUnavailable.
    """
    model = model or identify(settings.embedding_model)
    exact = open_model(settings, model, threads=threads)
    if not settings.query_int8 or model.is_int8 or exact.runtime != OnnxEmbedder.runtime:
        return exact
    try:
        rounded = _open_exported(settings, replace(model, name=model.name + INT8), threads=1)
    except _NoExport as reason:
        log.warning("questions_are_embedded_exactly", model=model.name, reason=str(reason))
        return exact
    return RoundedQueries(exact, rounded)


def query_threads(settings: Settings) -> int:
    """Threads of a service that embed questions: half of the cores, unless it is set.

    Each question keeps the database and the service itself as busy; with a thread for each core they
    only get in each other's way.
    """
    return settings.embedding_threads or max(1, usable_cores() // 2)


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: its affinity, and the quota of its container."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return cores


def _open_exported(settings: Settings, model: ModelIdentity, threads: int) -> OnnxEmbedder:
    target = _export_folder(settings, model.digest)
    if target.is_dir():
        try:
            return _open(settings, target, model, threads)
        except Exception as error:  # noqa: BLE001 - a damaged file can fail in any way
            log.warning("embedding_export_damaged", path=str(target), reason=str(error))
            shutil.rmtree(target, ignore_errors=True)
    log.info("embedding_export_started", model=model.name)
    exact = _export_folder(settings, model.weights_digest)
    if not exact.is_dir():
        _export(model.folder, exact)
    if model.is_int8:
        _run_child("app.embedding.int8", exact, target)
    try:
        return _open(settings, target, model, threads)
    except Exception as error:
        raise _NoExport(f"its export cannot be opened: {error}") from error


def _export_folder(settings: Settings, digest: str) -> Path:
    return settings.model_cache / digest / EXPORT_FORMAT


def _open(settings: Settings, target: Path, model: ModelIdentity, threads: int) -> OnnxEmbedder:
    return OnnxEmbedder(
        target,
        name=model.name,
        digest=model.digest,
        threads=threads,
        # Integers are rounded on a scale that all texts of a batch share. Alone, a text has the
        # same vector whatever is embedded with it.
        batch_tokens=1 if model.is_int8 else settings.embedding_batch_tokens,
    )


def _export(folder: Path, target: Path) -> None:
    _run_child("app.embedding.onnx_export", folder, target)


def _run_child(module: str, source: Path, target: Path) -> None:
    """Export in a child process: the memory of torch goes with it, and so does a crash in it."""
    command = [sys.executable, "-P", "-m", module, str(source), str(target)]
    # The child must find this very package, whatever lies in the working directory.
    path = [str(Path(app.__path__[0]).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, and paths that are no options
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
        raise _NoExport(f"its export did not finish: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise _NoExport(lines[-1])
