"""A server with `POST /v1/rerank` that answers as the common ones do, or as badly as a test wants."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any


class RerankServer:
    """Scores by the share of the query's words that a passage holds.

    `requests` are the bodies that came. `answer`, when set, makes the reply's body of the right
    one; `status` is that of the replies. With `drips` the body comes byte by byte, with a pause after
    each until `released`.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.api_key: str | None = None
        self.requests: list[Mapping[str, Any]] = []
        self.status = 200
        self.answer: Callable[[dict[str, Any]], bytes] | None = None
        self.drips = False
        self.arrived = Event()
        self.released = Event()

    def reply(self, body: Mapping[str, Any]) -> bytes:
        words = set(str(body["query"]).lower().split())
        results = [
            {
                "index": index,
                "relevance_score": len(words & set(document.lower().split())) / max(1, len(words)),
                "document": {"text": document},
            }
            for index, document in enumerate(body["documents"])
        ]
        results.sort(key=lambda one: -float(one["relevance_score"]))
        right = {
            "id": "rerank-1",
            "model": body.get("model", "default"),
            "results": results[: body.get("top_n", len(results))],
            "usage": {"total_tokens": 1},
        }
        return json.dumps(right).encode() if self.answer is None else self.answer(right)


@contextmanager
def rerank_server() -> Iterator[RerankServer]:
    listening = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    listening.daemon_threads = True
    double = RerankServer(f"http://127.0.0.1:{listening.server_address[1]}")
    listening.RequestHandlerClass = type("Handler", (_Handler,), {"double": double})
    thread = Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield double
    finally:
        double.released.set()
        listening.shutdown()
        thread.join()
        listening.server_close()


class _Handler(BaseHTTPRequestHandler):
    double: RerankServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        double = self.double
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        double.requests.append(body)
        double.arrived.set()
        key = double.api_key
        if key is not None and self.headers["Authorization"] != f"Bearer {key}":
            self._send(401, b'{"detail": "no such key"}')
        elif self.path != "/v1/rerank":
            self._send(404, b'{"detail": "Not Found"}')
        else:
            self._send(double.status, double.reply(body))

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        try:
            if self.double.drips:
                for place in range(len(content)):
                    self.wfile.write(content[place : place + 1])
                    self.double.released.wait(0.02)
            else:
                self.wfile.write(content)
        except OSError:
            self.close_connection = True  # the client did not wait

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
