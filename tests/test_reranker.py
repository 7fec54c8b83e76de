"""Rerankers: what all of them promise, what an export keeps, and what a server cannot do to us."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Any

import numpy as np
import pytest

from reranker.base import Reranker, RerankerUnavailable
from reranker.cross_encoder import (
    GRAPH_FILE,
    INT8_GRAPH_FILE,
    MANIFEST_FILE,
    CrossEncoder,
    sigmoid,
)
from reranker.loading import open_cross_encoder
from reranker.remote import MAX_REPLY_BYTES, RemoteReranker, read_scores
from reranker.sentence_transformer import TorchCrossEncoder
from tests.doubles.rerank_server import RerankServer, rerank_server
from tests.tiny_models import MAX_TOKENS, save_tiny_cross_encoder

QUERY = "When is the cold room open?"
PASSAGES = [
    "the cold room is open from seven",
    "invoice",
    "a claim for a crate that was counted " * 20,
    "",
    "odd \ud800 words, 冷蔵室 and a \0 in between",
    "the cold room is open from seven",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_cross_encoder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def local(model: Path, cache: Path) -> Callable[..., Reranker]:
    def opened(name: Path | str = model, **options: Any) -> Reranker:
        settings = {"runtime": "auto", "int8": True, "threads": 2, "max_tokens": 160, **options}
        return open_cross_encoder(str(name), cache=cache, **settings)  # pyright: ignore[reportArgumentType]

    return opened


@pytest.fixture
def server() -> Iterator[RerankServer]:
    with rerank_server() as double:
        yield double


def remote(server: RerankServer, **options: Any) -> RemoteReranker:
    settings: dict[str, Any] = {"model": "any", "api_key": None, "timeout_seconds": 10, **options}
    return RemoteReranker(server.url, **settings)


@pytest.fixture(params=["int8", "float32", "torch", "remote"])
def reranker(
    request: pytest.FixtureRequest, local: Callable[..., Reranker], server: RerankServer
) -> Iterator[Reranker]:
    if request.param == "remote":
        opened: Reranker = remote(server)
    elif request.param == "torch":
        opened = local(runtime="torch")
    else:
        opened = local(int8=request.param == "int8")
    yield opened
    opened.close()


# --- what all of them promise ---------------------------------------------------------------------


def test_each_passage_gets_its_score(reranker: Reranker) -> None:
    scores = reranker.score(QUERY, PASSAGES)
    assert (scores.dtype, scores.shape) == (np.float32, (len(PASSAGES),))
    assert np.isfinite(scores).all()
    assert scores[0] == pytest.approx(scores[5], abs=1e-6)
    assert len({round(float(score), 4) for score in scores}) > 1
    turned = reranker.score(QUERY, PASSAGES[::-1])
    np.testing.assert_allclose(turned[::-1], scores, atol=1e-5)
    assert reranker.score(QUERY, []).shape == (0,)
    assert reranker.score("", ["the cold room"]).shape == (1,)
    assert reranker.score("cold " * 5000, ["the cold room"]).shape == (1,)
    assert reranker.name
    assert len(reranker.digest) == 64


def test_many_may_ask_at_once(reranker: Reranker) -> None:
    expected = reranker.score(QUERY, PASSAGES)
    found: list[Any] = []
    threads = [
        Thread(target=lambda: found.append(reranker.score(QUERY, PASSAGES))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    for scores in found:
        np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_a_closed_one_says_so(local: Callable[..., Reranker], server: RerankServer) -> None:
    for closed in (local(), remote(server)):
        closed.close()
        closed.close()
        with pytest.raises(RerankerUnavailable):
            closed.score(QUERY, PASSAGES)


# --- cross-encoders -------------------------------------------------------------------------------


def test_the_export_scores_as_torch_does(local: Callable[..., Reranker]) -> None:
    expected = local(runtime="torch", max_tokens=MAX_TOKENS).score(QUERY, PASSAGES)
    exact = local(int8=False).score(QUERY, PASSAGES)
    np.testing.assert_allclose(exact, expected, atol=1e-4)
    rounded = local().score(QUERY, PASSAGES)
    assert np.corrcoef(rounded, expected)[0, 1] > 0.9
    assert not np.array_equal(rounded, exact)


def test_an_export_is_made_once_and_mended(
    local: Callable[..., Reranker], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local()
    [graph] = cache.glob(f"*/*/{INT8_GRAPH_FILE}")
    made = graph.stat().st_mtime_ns
    monkeypatch.setattr("reranker.loading.subprocess", None)  # nothing is exported
    local()
    assert graph.stat().st_mtime_ns == made
    monkeypatch.undo()
    graph.write_bytes(b"cut off")
    assert local().score(QUERY, PASSAGES).shape == (len(PASSAGES),)


def test_a_ready_made_folder_needs_no_export(
    local: Callable[..., Reranker], cache: Path, tmp_path: Path
) -> None:
    expected = local(int8=False).score(QUERY, PASSAGES)
    [graph] = cache.glob(f"*/*/{GRAPH_FILE}")
    ready = shutil.copytree(graph.parent, tmp_path / "ready")
    opened = local(ready)
    np.testing.assert_array_equal(opened.score(QUERY, PASSAGES), expected)
    with pytest.raises(RerankerUnavailable, match="made for onnxruntime"):
        local(ready, runtime="torch")
    manifest = json.loads((ready / MANIFEST_FILE).read_text())
    assert manifest["activation"] == "sigmoid"
    (ready / MANIFEST_FILE).write_text(json.dumps({**manifest, "activation": "identity"}))
    np.testing.assert_allclose(sigmoid(local(ready).score(QUERY, PASSAGES)), expected, atol=1e-6)


def test_a_long_query_leaves_room_for_the_passage(local: Callable[..., Reranker]) -> None:
    opened = local(int8=False)
    assert isinstance(opened, CrossEncoder)
    assert opened.max_tokens == MAX_TOKENS
    scores = opened.score("cold " * 500, ["the store is open", "an invoice for a crate"])
    assert scores[0] != scores[1]


def test_what_cannot_be_a_reranker_is_refused(
    local: Callable[..., Reranker], model: Path, tmp_path: Path
) -> None:
    with pytest.raises(RerankerUnavailable, match="not a folder"):
        local(tmp_path / "nothing")
    with pytest.raises(RerankerUnavailable, match="could not be downloaded"):
        local("nobody/has-this-model")
    classes = save_tiny_cross_encoder(tmp_path / "classes", labels=3)
    with pytest.raises(RerankerUnavailable, match="3 classes"):
        local(classes, runtime="torch")
    pickled = shutil.copytree(model, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(RerankerUnavailable, match="safetensors"):
        local(pickled)
    damaged = shutil.copytree(model, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(RerankerUnavailable, match="cannot be loaded"):
        local(damaged, runtime="torch")


def test_code_of_a_model_is_never_run(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "hostile")
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "own.Config",
        "AutoModelForSequenceClassification": "own.Model",
    }
    config["model_type"] = "own"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RerankerUnavailable, match="cannot be loaded"):
        TorchCrossEncoder(folder, name="hostile", digest="", device="cpu")
    assert not ran.exists()


# --- servers --------------------------------------------------------------------------------------


def test_a_server_is_asked_in_the_common_form(server: RerankServer) -> None:
    server.api_key = "secret"
    asked = remote(server, model="rerank-2", api_key="secret")
    scores = asked.score("cold room", ["warm", "cold room", "cold"])
    assert scores.tolist() == [0.0, 1.0, 0.5]
    assert server.requests == [
        {
            "model": "rerank-2",
            "query": "cold room",
            "documents": ["warm", "cold room", "cold"],
            "top_n": 3,
        }
    ]
    assert "secret" not in asked.name + asked.digest
    asked.close()
    keyless = remote(server)
    with pytest.raises(RerankerUnavailable, match="answered 401"):
        keyless.score("cold", ["warm"])
    keyless.close()
    elsewhere = RemoteReranker(
        f"{server.url}/other/path", model="", api_key=None, timeout_seconds=10
    )
    with pytest.raises(RerankerUnavailable, match="answered 404|answered 401"):
        elsewhere.score("cold", ["warm"])
    elsewhere.close()


def test_no_server_is_a_reason_and_no_crash() -> None:
    away = RemoteReranker("http://127.0.0.1:9", model="", api_key=None, timeout_seconds=5)
    with pytest.raises(RerankerUnavailable, match="cannot be reached"):
        away.score("cold", ["warm"])
    away.close()
    for url in ("ftp://rerank.example", "http://", "file:///etc/passwd"):
        with pytest.raises(RerankerUnavailable, match="not the address"):
            RemoteReranker(url, model="", api_key=None, timeout_seconds=5)


def test_a_server_that_drips_is_left(server: RerankServer) -> None:
    server.drips = True
    slow = remote(server, timeout_seconds=0.2)
    started = monotonic()
    with pytest.raises(RerankerUnavailable, match=r"within 0\.2 s"):
        slow.score(QUERY, ["warm"] * 50)
    assert monotonic() - started < 5
    slow.close()


def test_closing_ends_what_waits(server: RerankServer) -> None:
    server.drips = True
    asked = remote(server, timeout_seconds=60)
    reasons: list[str] = []

    def ask() -> None:
        try:
            asked.score(QUERY, ["warm"] * 50)
        except RerankerUnavailable as error:
            reasons.append(str(error))

    thread = Thread(target=ask)
    thread.start()
    assert server.arrived.wait(10)
    asked.close()
    thread.join(10)
    assert not thread.is_alive()
    assert "is closed" in reasons[0]


@pytest.mark.parametrize("status", [204, 302, 400, 429, 500, 503])
def test_any_other_status_is_a_reason(server: RerankServer, status: int) -> None:
    server.status = status
    server.answer = lambda _right: b""
    asked = remote(server)
    with pytest.raises(RerankerUnavailable):
        asked.score("cold", ["warm"])
    asked.close()


def test_a_reply_without_end_is_not_read(server: RerankServer) -> None:
    server.answer = lambda _right: b" " * (MAX_REPLY_BYTES + 2)
    asked = remote(server)
    with pytest.raises(RerankerUnavailable, match="more than can be read"):
        asked.score("cold", ["warm"])
    asked.close()


def result(index: object, score: object = 0.5) -> dict[str, object]:
    return {"index": index, "relevance_score": score}


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        b'{"results": null}',
        b'{"results": {"index": 0}}',
        b'{"results": [1, 2]}',
        b'{"results": [{"index": 0}]}',
        b"[" * 100_000,
        *(
            json.dumps({"results": results}).encode()
            for results in (
                [],
                [result(0)],
                [result(0), result(0)],
                [result(0), result(1), result(1)],
                [result(0), result(2)],
                [result(0), result(-1)],
                [result(0), result(True)],
                [result(0), result("1")],
                [result(0), result(1.0)],
                [result(0), result(1, None)],
                [result(0), result(1, "0.5")],
                [result(0), result(1, True)],
                [result(0), result(1, float("nan"))],
                [result(0), result(1, float("inf"))],
                [result(0), result(1, 1e300)],
                [result(0), result(1, 10**400)],
            )
        ),
    ],
)
def test_a_reply_that_makes_no_sense_is_a_reason(server: RerankServer, reply: bytes) -> None:
    server.answer = lambda _right: reply
    with (
        closing(remote(server)) as asked,
        pytest.raises(RerankerUnavailable, match="gave|did not give"),
    ):
        asked.score("cold", ["warm", "cold"])


def test_scores_may_come_in_any_order_and_as_whole_numbers() -> None:
    reply = json.dumps({"results": [result(1, 3), result(0, -2.5)]}).encode()
    assert read_scores(reply, 2, "server").tolist() == [-2.5, 3.0]
