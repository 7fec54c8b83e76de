"""What the parser's parent and its child say to each other through two pipes.

A request is the length of the name, the length of the content, and both. A reply is the length of
its head, the length of its text, and both: the head is JSON, so that a child that a document has
taken over can do no more than lie; the text is apart from it, so that a long one is read piece by
piece and never held twice.
"""

import json
import struct
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, Self

REQUEST_HEADER = struct.Struct(">IQ")
REPLY_HEADER = struct.Struct(">QQ")
HEAD_BYTES_MAX = 8 * 1024 * 1024
"""Enough for the offsets of 150,000 pages."""


@dataclass(frozen=True, slots=True)
class ChildLimits:
    memory_bytes: int
    output_bytes: int
    timeout_seconds: float
    parent_pid: int

    def to_argument(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_argument(cls, argument: str) -> Self:
        return cls(**json.loads(argument))


def request_header(filename: str, content: bytes) -> bytes:
    name = filename.encode("utf-8", "replace")
    return REQUEST_HEADER.pack(len(name), len(content)) + name


def read_request(stream: BinaryIO) -> tuple[str, bytes] | None:
    """Name and content of the next document; None when the parent is gone."""
    header = stream.read(REQUEST_HEADER.size)
    if len(header) < REQUEST_HEADER.size:
        return None
    name_length, content_length = REQUEST_HEADER.unpack(header)
    return stream.read(name_length).decode("utf-8"), stream.read(content_length)


def write_reply(stream: BinaryIO, reply: dict[str, Any], text: str, bytes_max: int) -> None:
    head, body = _encoded(reply), text.encode("utf-8")
    if len(body) > bytes_max or len(head) > HEAD_BYTES_MAX:
        head, body = _encoded({"too_large": True}), b""
    stream.write(REPLY_HEADER.pack(len(head), len(body)) + head)
    stream.write(body)
    stream.flush()


def _encoded(reply: dict[str, Any]) -> bytes:
    return json.dumps(reply, ensure_ascii=False).encode("utf-8")
