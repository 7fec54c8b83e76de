"""The address: taken at once, or refused with the reason."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from app.config import Settings
from app.errors import PortTaken, StartupError
from app.listening import base_url, is_footnote, open_listener


@contextmanager
def somebody(reply: object) -> Iterator[int]:
    """An HTTP server that answers everything with this JSON; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_the_port_is_ours_before_anything_answers() -> None:
    with open_listener(Settings(port=0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortTaken), open_listener(Settings(port=port)):
            pass
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            pass
    with open_listener(Settings(port=port)):
        pass


def test_a_port_taken_by_another_program() -> None:
    with somebody({"hello": "world"}) as port:
        with pytest.raises(PortTaken, match="Another program") as refused:
            open_listener(Settings(port=port)).__enter__()
        assert "FOOTNOTE_PORT" in refused.value.hint


def test_a_port_taken_by_footnote_itself() -> None:
    with somebody({"alive": True}) as port:
        with pytest.raises(PortTaken, match="Footnote itself") as refused:
            open_listener(Settings(port=port)).__enter__()
        assert f"http://127.0.0.1:{port}" in refused.value.hint


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_a_host_that_is_not_this_machine(host: str) -> None:
    with pytest.raises(StartupError, match=host) as refused:
        open_listener(Settings(host=host, port=0)).__enter__()
    assert "FOOTNOTE_HOST" in refused.value.hint


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1:8008"),
        ("localhost", "http://localhost:8008"),
        ("0.0.0.0", "http://127.0.0.1:8008"),  # noqa: S104
        ("::", "http://[::1]:8008"),
        ("::1", "http://[::1]:8008"),
    ],
)
def test_the_address_for_a_client_on_this_machine(host: str, address: str) -> None:
    assert base_url(Settings(host=host)) == address
    assert httpx.URL(base_url(Settings(host=host, port=80), port=9)).port == 9


def test_who_answers() -> None:
    with somebody({"alive": True}) as port:
        assert is_footnote(f"http://127.0.0.1:{port}")
    assert not is_footnote(f"http://127.0.0.1:{port}")
    with somebody(["alive"]) as port:
        assert not is_footnote(f"http://127.0.0.1:{port}")
