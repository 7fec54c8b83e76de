"""Starting the embedded PostgreSQL again when it dies under those who use it.

Every process that has started or joined the server watches it, and the server's lock lets one of
them act; the others find it running again. Connections are not mended here: pools do that.
"""

import threading
from collections.abc import Generator
from contextlib import contextmanager

import structlog

from app.db.embedded import EmbeddedPostgres
from app.errors import FootnoteError

log = structlog.get_logger(__name__)

LOOK_SECONDS = 0.5
PAUSE_SECONDS = 5.0
"""After a start that failed: a full disk, say, is not emptied by trying."""


@contextmanager
def kept_running(server: EmbeddedPostgres) -> Generator[None]:
    """Start the server again whenever it dies, for as long as the block runs."""
    leaving = threading.Event()
    # A thread, because commands of all kinds use the server, with an event loop and without.
    watch = threading.Thread(
        target=_watch, args=(server, leaving), name="postgres-watch", daemon=True
    )
    watch.start()
    try:
        yield
    finally:
        leaving.set()
        watch.join()


def _watch(server: EmbeddedPostgres, leaving: threading.Event) -> None:
    pause_seconds = LOOK_SECONDS
    while not leaving.wait(pause_seconds):
        pause_seconds = LOOK_SECONDS
        if server.is_running:
            continue
        try:
            if server.revive():
                log.error("postgres_died_and_was_started_again", home=str(server.home))
        except (FootnoteError, OSError) as error:
            log.error("postgres_died", reason=str(error), again_in_seconds=PAUSE_SECONDS)
            pause_seconds = PAUSE_SECONDS
