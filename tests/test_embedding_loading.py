"""From a model's name to a loaded embedder: what is found, exported, refused and fallen back on."""

# ruff: noqa: PLC0415 - torch is loaded by the tests that need it, not by collecting them

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from app.config import BUNDLED_MODEL, Settings
from app.embedding import loading, onnx_export
from app.embedding.loading import EXPORT_FORMAT, open_embedder, usable_cores
from app.embedding.model_folder import locate_model, model_digest
from app.embedding.onnx import GRAPH_FILE, MANIFEST_FILE, TOKENIZER_FILE, WEIGHTS_FILE
from app.embedding.onnx_export import ExportRefused, export_model
from app.errors import EmbeddingUnavailable
from app.telemetry import DEGRADED
from tests.tiny_models import DIMENSIONS, save_tiny_model

EXPORT_FILES = {GRAPH_FILE, WEIGHTS_FILE, TOKENIZER_FILE, MANIFEST_FILE}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("pristine") / "model")


@pytest.fixture
def model(pristine: Path, tmp_path: Path) -> Path:
    """A model's folder that the test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "model"))


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    capture = structlog.testing.LogCapture()
    monkeypatch.setattr(loading, "log", structlog.wrap_logger(None, processors=[capture]))
    return capture.entries


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export without a child process: what is tested is what happens around it."""

    def export(folder: Path, target: Path) -> None:
        try:
            export_model(folder, target)
        except (ExportRefused, EmbeddingUnavailable, OSError) as error:
            raise loading._NoExport(str(error)) from error

    monkeypatch.setattr(loading, "_export", export)


@pytest.fixture(autouse=True)
def not_degraded() -> Iterator[None]:
    yield
    DEGRADED.labels("embedding").set(0)


def settings_for(model: Path | str, home: Path, **others: Any) -> Settings:
    return Settings(home=home / "home", embedding_model=str(model), **others)


def degraded() -> float:
    return DEGRADED.labels("embedding")._value.get()


class TestFinding:
    @pytest.mark.parametrize("name", [BUNDLED_MODEL, f"sentence-transformers/{BUNDLED_MODEL}"])
    def test_the_bundled_model_needs_no_network(self, name: str) -> None:
        assert (locate_model(name) / "model.safetensors").is_file()

    def test_a_folder_is_taken_as_it_is(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert locate_model(str(model)) == model
        monkeypatch.setenv("HOME", str(model.parent))
        assert locate_model("~/model") == model
        monkeypatch.chdir(model.parent)
        assert locate_model("model") == model

    @pytest.mark.parametrize("name", ["/no/such/folder", "./missing", "~/missing", "not a name!"])
    def test_what_is_not_there_is_unavailable_with_a_hint(self, name: str) -> None:
        with pytest.raises(EmbeddingUnavailable) as caught:
            locate_model(name)
        assert name in caught.value.detail
        assert caught.value.hint

    def test_a_file_is_no_model(self, model: Path) -> None:
        with pytest.raises(EmbeddingUnavailable, match="not a folder"):
            locate_model(str(model / "config.json"))

    def test_offline_a_name_that_is_not_cached_says_how_to_get_it(self) -> None:
        with pytest.raises(EmbeddingUnavailable, match="HF_HUB_OFFLINE") as caught:
            locate_model("acme/unheard-of")
        assert BUNDLED_MODEL in caught.value.hint

    def test_a_cached_name_is_used_without_asking_for_a_newer_one(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        repository = tmp_path / "hub" / "models--acme--tiny"
        snapshot = repository / "snapshots" / ("a" * 40)
        shutil.copytree(model, snapshot)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("a" * 40)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        assert locate_model("acme/tiny") == snapshot

    def test_a_name_is_downloaded_without_pickles_or_code(
        self, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[dict[str, Any]] = []

        def snapshot_download(repository: str, **options: Any) -> str:
            asked.append({"repository": repository, **options})
            if options.get("local_files_only"):
                raise FileNotFoundError
            return str(model)

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        assert locate_model("tiny") == model
        assert [call["repository"] for call in asked] == ["sentence-transformers/tiny"] * 2
        wanted = asked[1]["allow_patterns"]
        assert "model.safetensors" in wanted
        assert not [pattern for pattern in wanted if pattern.endswith((".bin", ".py", "*", ".pt"))]

    def test_a_download_that_fails_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def snapshot_download(_repository: str, **_options: Any) -> str:
            raise ConnectionError("no route to host\nand more")

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        with pytest.raises(EmbeddingUnavailable, match="no route to host$"):
            locate_model("acme/tiny")

    def test_pickled_weights_are_refused(self, model: Path) -> None:
        (model / "model.safetensors").rename(model / "pytorch_model.bin")
        with pytest.raises(EmbeddingUnavailable, match="safetensors"):
            locate_model(str(model))

    def test_pickled_weights_of_one_part_are_refused(self, model: Path) -> None:
        add_module(model, "2_Dense", "sentence_transformers.models.Dense")
        (model / "2_Dense" / "pytorch_model.bin").write_bytes(b"")
        with pytest.raises(EmbeddingUnavailable, match="safetensors"):
            locate_model(str(model))

    def test_an_unreadable_list_of_modules_is_a_clear_error(self, model: Path) -> None:
        (model / "modules.json").write_text("[{")
        with pytest.raises(EmbeddingUnavailable, match=r"modules\.json"):
            locate_model(str(model))


class TestDigest:
    def test_depends_on_content_alone(self, model: Path, pristine: Path) -> None:
        before = model_digest(model)
        assert before == model_digest(pristine)
        assert len(before) == 64
        (model / "README.md").write_text("words about the model")
        (model / "onnx").mkdir()
        (model / "onnx" / "config.json").write_text("{}")
        os.utime(model / "model.safetensors", (0, 0))
        assert model_digest(model) == before

    @pytest.mark.parametrize(
        "name",
        [
            "model.safetensors",
            "tokenizer.json",
            "config_sentence_transformers.json",
            "1_Pooling/config.json",
        ],
    )
    def test_changes_with_every_file_that_vectors_depend_on(self, model: Path, name: str) -> None:
        before = model_digest(model)
        path = model / name
        path.write_bytes(path.read_bytes() + b" ")
        assert model_digest(model) != before

    def test_counts_a_vocabulary_only_where_it_decides(self, model: Path) -> None:
        before = model_digest(model)
        (model / "vocab.txt").write_text("[PAD]")
        assert model_digest(model) == before
        (model / "tokenizer.json").unlink()
        without = model_digest(model)
        (model / "vocab.txt").write_text("[UNK]")
        assert model_digest(model) != without


class TestOpening:
    def test_the_bundled_model_runs_on_onnx(self, embedder: Any, settings: Settings) -> None:
        assert embedder.runtime == "onnx"
        assert embedder.name == BUNDLED_MODEL
        assert embedder.dimensions == 384
        export = settings.model_cache / embedder.digest / EXPORT_FORMAT
        assert {path.name for path in export.iterdir()} == EXPORT_FILES
        assert degraded() == 0

    def test_an_exported_model_is_opened_without_torch(
        self, embedder: Any, settings: Settings
    ) -> None:
        script = (
            "import sys\n"
            "from app.config import Settings\n"
            "from app.embedding.loading import open_embedder\n"
            f"embedder = open_embedder(Settings(home={str(settings.home)!r}))\n"
            "assert embedder.embed(['a question'], 'query').shape == (1, 384)\n"
            "assert embedder.tokenizer.spans(['a question']) == [[(0, 1), (2, 10)]]\n"
            "heavy = {'torch', 'transformers', 'sentence_transformers', 'onnx'}\n"
            "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
        )
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")

    def test_torch_runs_the_model_when_told_to(
        self, model: Path, tmp_path: Path, logged: list[Any]
    ) -> None:
        embedder = open_embedder(settings_for(model, tmp_path, embedding_runtime="torch"))
        assert embedder.runtime == "torch"
        assert embedder.embed(["a question"], "query").shape == (1, DIMENSIONS)
        assert logged == []
        assert degraded() == 0

    @pytest.mark.usefixtures("in_process")
    def test_a_second_start_exports_nothing(
        self, model: Path, tmp_path: Path, logged: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = settings_for(model, tmp_path)
        first = open_embedder(settings)
        monkeypatch.setattr(loading, "_export", None)
        second = open_embedder(settings, threads=1)
        texts = ["the cold room", "a question"]
        np.testing.assert_array_equal(first.embed(texts, "query"), second.embed(texts, "query"))
        assert [entry["event"] for entry in logged] == ["embedding_export_started"]

    @pytest.mark.usefixtures("in_process")
    @pytest.mark.parametrize("name", sorted(EXPORT_FILES))
    def test_a_damaged_export_is_written_again(
        self, model: Path, tmp_path: Path, logged: list[Any], name: str
    ) -> None:
        settings = settings_for(model, tmp_path)
        expected = open_embedder(settings).embed(["a question"], "query")
        export = settings.model_cache / model_digest(model) / EXPORT_FORMAT
        (export / name).write_bytes((export / name).read_bytes()[:100])
        again = open_embedder(settings)
        assert again.runtime == "onnx"
        np.testing.assert_allclose(again.embed(["a question"], "query"), expected, atol=1e-6)
        assert "embedding_export_damaged" in [entry["event"] for entry in logged]

    def test_a_model_that_cannot_be_exported_runs_on_torch_and_says_so(
        self, tmp_path: Path, logged: list[Any]
    ) -> None:
        from sentence_transformers.sentence_transformer.modules import LayerNorm

        model = save_tiny_model(tmp_path / "model", extra_modules=(LayerNorm(DIMENSIONS),))
        embedder = open_embedder(settings_for(model, tmp_path))
        assert embedder.runtime == "torch"
        assert embedder.embed(["a question"], "query").shape == (1, DIMENSIONS)
        assert [entry["event"] for entry in logged] == [
            "embedding_export_started",
            "embedding_runs_on_torch",
        ]
        assert logged[1]["reason"] == "it has parts that are not exported: LayerNorm"
        assert degraded() == 1

    @pytest.mark.usefixtures("in_process")
    def test_a_runtime_that_was_asked_for_is_not_replaced(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(onnx_export, "PARITY_COSINE", 1.1)
        with pytest.raises(EmbeddingUnavailable, match="differ from torch") as caught:
            open_embedder(settings_for(model, tmp_path, embedding_runtime="onnx"))
        assert "FOOTNOTE_EMBEDDING_RUNTIME" in caught.value.hint

    @pytest.mark.usefixtures("in_process")
    def test_a_cache_that_cannot_be_written_leaves_torch(
        self, model: Path, tmp_path: Path, logged: list[Any]
    ) -> None:
        settings = settings_for(model, tmp_path)
        settings.home.write_text("a file where the folder should be")
        assert open_embedder(settings).runtime == "torch"
        assert logged[-1]["event"] == "embedding_runs_on_torch"

    @pytest.mark.parametrize("damage", ["weights", "tokenizer", "configuration", "code"])
    @pytest.mark.usefixtures("in_process", "logged")
    def test_a_model_that_cannot_be_loaded_is_unavailable(
        self, model: Path, tmp_path: Path, damage: str
    ) -> None:
        ran = tmp_path / "ran"
        if damage == "weights":
            weights = model / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:1000])
        elif damage == "tokenizer":
            (model / "tokenizer.json").write_text("{}")
        elif damage == "configuration":
            (model / "config.json").write_text('{"model_type": "nobody-knows"}')
        else:
            add_module(model, "", "custom.Module")
            (model / "custom.py").write_text(f"open({str(ran)!r}, 'w')\nclass Module: ...")
        with pytest.raises(EmbeddingUnavailable, match="cannot be loaded") as caught:
            open_embedder(settings_for(model, tmp_path))
        assert caught.value.hint
        assert not ran.exists()


class TestExporting:
    def test_several_processes_at_once_write_one_export(self, model: Path, tmp_path: Path) -> None:
        target = tmp_path / "cache" / "export"
        command = [sys.executable, "-m", "app.embedding.onnx_export", str(model), str(target)]
        processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
        errors = [process.communicate(timeout=120)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], errors
        assert {path.name for path in target.iterdir()} == EXPORT_FILES
        assert {path.name for path in target.parent.iterdir()} == {"export", "export.lock"}

    def test_what_a_killed_process_left_is_cleared(self, model: Path, tmp_path: Path) -> None:
        target = tmp_path / "cache" / "export"
        leftover = target.parent / f"{onnx_export.PARTIAL_PREFIX}killed"
        leftover.mkdir(parents=True)
        (leftover / GRAPH_FILE).write_text("half a gra")
        export_model(model, target)
        assert {path.name for path in target.parent.iterdir()} == {"export", "export.lock"}

    def test_other_vectors_than_torchs_are_refused(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An export that truncates one token earlier differs in the longest text alone."""
        target = tmp_path / "cache" / "export"
        original = onnx_export.Manifest.write

        def shorter(manifest: Any, folder: Path) -> None:
            object.__setattr__(manifest, "max_tokens", manifest.max_tokens - 1)
            original(manifest, folder)

        monkeypatch.setattr(onnx_export.Manifest, "write", shorter)
        with pytest.raises(ExportRefused, match="differ from torch"):
            export_model(model, target)
        assert {path.name for path in target.parent.iterdir()} == {"export.lock"}

    def test_a_model_that_gives_no_vectors_is_not_exported(
        self, model: Path, tmp_path: Path
    ) -> None:
        from safetensors.numpy import load_file, save_file

        weights = load_file(model / "model.safetensors")
        name = "embeddings.word_embeddings.weight"
        weights[name] = np.full_like(weights[name], np.nan)
        save_file(weights, model / "model.safetensors", {"format": "pt"})
        with pytest.raises(EmbeddingUnavailable, match="length 1"):
            export_model(model, tmp_path / "cache" / "export")

    @pytest.mark.parametrize("failure", ["timeout", "crash", "silence"])
    def test_an_export_that_dies_leaves_torch(
        self,
        model: Path,
        tmp_path: Path,
        logged: list[Any],
        monkeypatch: pytest.MonkeyPatch,
        failure: str,
    ) -> None:
        def run(command: list[str], **_options: Any) -> subprocess.CompletedProcess[str]:
            if failure == "timeout":
                raise subprocess.TimeoutExpired(command, 1)
            lines = "Traceback\nMemoryError: no room\n" if failure == "crash" else ""
            return subprocess.CompletedProcess(command, -9, "", lines)

        monkeypatch.setattr("app.embedding.loading.subprocess.run", run)
        assert open_embedder(settings_for(model, tmp_path)).runtime == "torch"
        reason = {"timeout": "timed out", "crash": "MemoryError: no room", "silence": "status -9"}
        assert reason[failure] in logged[-1]["reason"]


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("100000 100000", 1),
        ("50000 100000", 1),
        ("max 100000", None),
        ("nonsense", None),
        ("", None),
    ],
)
def test_cores_are_bounded_by_the_containers_quota(
    tmp_path: Path, quota: str, expected: int | None
) -> None:
    unbounded = usable_cores(tmp_path / "none")
    assert 1 <= unbounded <= (os.cpu_count() or 1)
    (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores(tmp_path) == (expected or unbounded)


def add_module(model: Path, path: str, kind: str) -> None:
    modules = json.loads((model / "modules.json").read_text())
    number = len(modules)
    modules.append({"idx": number, "name": str(number), "path": path, "type": kind})
    (model / "modules.json").write_text(json.dumps(modules))
    (model / path).mkdir(exist_ok=True)
