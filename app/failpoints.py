"""Named places where a test can make this process die, stand still or fail.

They do nothing unless FOOTNOTE_FAILPOINTS is set, as `NAME=ACTION[@HIT]`, several with commas
between them: `version.before_commit=kill@3,worker.claimed=stop`. The action comes on the third time
that the place is reached, by default on the first, and only then. It is one of

- `kill`: the process is gone at once, as by `kill -9`;
- `stop`: it stands still with all its threads, until somebody sends it SIGCONT;
- `pause:SECONDS`: the thread that came by stands still, and with it an event loop;
- `error`: FailpointError is raised.
"""

import os
import signal
import time
from dataclasses import dataclass
from typing import Literal, cast, get_args

VARIABLE = "FOOTNOTE_FAILPOINTS"

Place = Literal[
    # an upload: its body is in memory; then inside its transaction; then after it
    "upload.body_read",
    "upload.blob_stored",
    "upload.job_deferred",
    "upload.before_commit",
    "upload.committed",
    # a worker: inside the claim's transaction, after it, and when only the job is left to end
    "claim.before_commit",
    "worker.claimed",
    "worker.before_job_done",
    "rescue.jobs_put_back",
    # the pipeline, of the worker and of the command
    "pipeline.parsed",
    "pipeline.chunked",
    "pipeline.embedded",
    "pipeline.ids_reserved",
    "pipeline.committed",
    # inside the transaction that makes a version serve
    "version.chunks_written",
    "version.vectors_written",
    "version.postings_written",
    "version.status_set",
    "version.old_removed",
    "version.before_commit",
    # a deletion: inside its transaction, then after it
    "delete.version_removed",
    "delete.before_commit",
    "delete.committed",
    # what only the command does, between its documents and behind them
    "folder.notes_written",
    "folder.document_deleted",
    "folder.before_tidy",
    # what keeps the indexes fast
    "postings.before_merge_commit",
    "postings.merged",
    "vectors.before_index",
    "vectors.index_built",
    # another embedding model: a round of vectors inside its transaction and after it, all of them
    # there, the switch inside its transaction and after it, and old vectors on their way out
    "switch.vectors_written",
    "switch.round_committed",
    "switch.filled",
    "switch.before_commit",
    "switch.committed",
    "switch.vectors_dropped",
]
PLACES: tuple[Place, ...] = get_args(Place)

Action = Literal["kill", "stop", "pause", "error"]


class FailpointError(RuntimeError):
    """A failpoint was told to fail."""


@dataclass(slots=True)
class _Trap:
    action: Action
    seconds: float
    hit: int


def arm(description: str) -> None:
    """Set the traps that it describes, and no others; raises ValueError for what it cannot mean."""
    _traps.clear()
    for part in filter(None, map(str.strip, description.split(","))):
        place, _, words = part.partition("=")
        action, _, hit = words.partition("@")
        action, _, seconds = action.partition(":")
        if place not in PLACES or action not in get_args(Action):
            raise ValueError(f"{VARIABLE} does not understand {part!r}")
        _traps[place] = _Trap(cast("Action", action), float(seconds or 0), int(hit or 1))


def reach(place: Place) -> None:
    """Say that this place is reached; costs a look at an empty dictionary."""
    if _traps and (trap := _traps.get(place)):
        _spring(place, trap)


def _spring(place: Place, trap: _Trap) -> None:
    trap.hit -= 1
    if trap.hit != 0:
        return
    match trap.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "pause":
            time.sleep(trap.seconds)
        case "error":
            raise FailpointError(place)


_traps: dict[Place, _Trap] = {}
arm(os.environ.get(VARIABLE, ""))
