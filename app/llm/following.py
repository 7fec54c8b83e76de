"""The model servers of the configuration file, read again whenever it changes."""

import asyncio
from pathlib import Path

import structlog

from app.config import load_settings, settings_file
from app.errors import FootnoteError
from app.llm.pool import GenerationPool
from app.llm.registry import parse_instances

LOOK_SECONDS = 2.0

log = structlog.get_logger(__name__)


async def follow_configuration(pool: GenerationPool) -> None:
    """Keeps the pool's servers as the file has them; a file that is wrong changes nothing.

    What was changed by hand holds until the file says something else than before.
    """
    path = settings_file()
    known_at = await asyncio.to_thread(_changed_at, path)
    known: tuple[str, ...] | None = None
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        changed_at = await asyncio.to_thread(_changed_at, path)
        if changed_at == known_at:
            continue
        known_at = changed_at
        try:
            urls = (await asyncio.to_thread(load_settings)).ollama_urls
            addresses = parse_instances(urls)
        except FootnoteError as error:
            log.warning("configuration_not_read", path=str(path), reason=error.detail)
            continue
        if addresses and urls != known:
            known = urls
            pool.configure(addresses)


def _changed_at(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
