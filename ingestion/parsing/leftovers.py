"""The folders of parsing children whose parent was killed before it could remove them.

A folder is in use while somebody holds the lock on its log: the child does, through its standard
error, to its very end. So nobody needs to be asked, and a process id that was given out again
misleads nobody.
"""

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import IO

FOLDER_PREFIX = "footnote-parser-"
LOG_FILE = "stderr.log"
YOUNG_SECONDS = 60.0
"""A folder this young may be one whose child is about to start."""


def mark_as_used(log: IO[bytes]) -> None:
    """Keep the folder for whoever inherits this log, as long as it lives."""
    fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_leftovers() -> int:
    """Remove this user's folders that nobody uses any more; how many."""
    return sum(map(_remove_if_left, Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*")))


def _remove_if_left(folder: Path) -> bool:
    try:
        found = folder.lstat()
        if found.st_uid != os.geteuid() or time.time() - found.st_mtime < YOUNG_SECONDS:
            return False
        if (folder / LOG_FILE).exists():
            with (folder / LOG_FILE).open("rb") as log:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False  # in use, or gone meanwhile
    shutil.rmtree(folder, ignore_errors=True)
    return True
