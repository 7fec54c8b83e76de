"""What a parsing child gives up before it sees a document that somebody made.

Linux gives all of it; elsewhere what there is. Nothing here may fail: what cannot be given up is
one wall less, not a reason to read no documents.
"""

import ctypes
import os
import resource
import signal
import sys
from contextlib import suppress

from ingestion.parsing.landlock import restrict_to

FILE_BYTES_MAX = 256 * 1024 * 1024
OPEN_FILES_MAX = 128

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000


def confine(memory_bytes: int, parent_pid: int) -> None:
    """Bound this process in memory and files, cut it off the network, tie it to its parent.

    It can write in its working folder only.
    """
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, FILE_BYTES_MAX)
    _limit(resource.RLIMIT_NOFILE, OPEN_FILES_MAX)
    _limit(resource.RLIMIT_AS, memory_bytes)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        # The network first: a change of namespace forgets the death signal.
        if libc.unshare(_CLONE_NEWNET) != 0:
            libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        with suppress(OSError):
            restrict_to(os.getcwd())
    if os.getppid() != parent_pid:
        sys.exit("the parent is gone")


def limit_time(seconds: float) -> None:
    """End this process when the next document takes far longer than its parent would wait."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = used.ru_utime + used.ru_stime
    _limit(resource.RLIMIT_CPU, int(spent + 2 * seconds) + 1)
    signal.alarm(int(2 * seconds) + 1)


def _limit(kind: int, amount: int) -> None:
    with suppress(ValueError, OSError):
        hard = resource.getrlimit(kind)[1]
        bound = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        resource.setrlimit(kind, (bound, hard))
