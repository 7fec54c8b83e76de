"""The process that reads documents: `python -m ingestion.parsing.child`, started by `sandbox.py`.

It answers one document at a time (see `protocol.py`). It holds no secrets, and a document that
kills it has killed nothing else.
"""

import os
import sys
import traceback
from dataclasses import asdict, replace
from typing import Any, BinaryIO

from app.errors import DocumentRejected
from ingestion.parsing.confinement import confine, limit_time
from ingestion.parsing.documents import parse_document
from ingestion.parsing.protocol import ChildLimits, read_request, write_reply

FAULT_CHARS_MAX = 2000


def main() -> None:
    limits = ChildLimits.from_argument(sys.argv[1])
    requests, replies = sys.stdin.buffer, _private_output()
    confine(limits.memory_bytes, limits.parent_pid)
    write_reply(replies, {"ready": True}, "", limits.output_bytes)
    while (request := read_request(requests)) is not None:
        limit_time(limits.timeout_seconds)
        write_reply(replies, *_answer(*request), limits.output_bytes)


def _private_output() -> BinaryIO:
    """Standard output for replies only: what a library prints must not get among them."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return replies


def _answer(filename: str, content: bytes) -> tuple[dict[str, Any], str]:
    """What to reply, and the text of the document."""
    try:
        document = parse_document(content, filename)
    except DocumentRejected as refusal:
        return {"reason": refusal.reason}, ""
    except MemoryError:
        return {"out_of_memory": True}, ""
    except Exception:  # noqa: BLE001 - whatever one document brings to light, the next is read
        fault = traceback.format_exc()[-FAULT_CHARS_MAX:]
        return {"reason": "damaged: it cannot be read", "fault": fault}, ""
    return {"document": asdict(replace(document, text=""))}, document.text


if __name__ == "__main__":
    main()
