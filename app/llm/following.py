"""The model servers as they are wanted: by the configuration, and by hand on top of it.

What is changed by hand stands in the database. Every process looks there, and at the configuration
file, every LOOK_SECONDS; so all follow whichever was asked, those that start later too. While the
database is away the servers stay as they were last wanted; Redis has no part in it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import httpx
import structlog
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.config import load_settings, settings_file
from app.db.models import ModelServerChange
from app.db.session import Sessions
from app.db.transactions import translated_errors
from app.errors import Conflict, FootnoteError, InvalidInput, NotFound
from app.llm.pool import GenerationPool
from app.llm.registry import parse_instances
from app.llm.roster import InstanceAddress, State, address_of

LOOK_SECONDS = 1.0
MAX_CHANGED = 1000
"""Servers that are otherwise than the configuration has them."""

Wish = State | Literal["configured"]
"""`configured`: as the configuration has it, whatever was changed before."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServerChange:
    """What holds for a server by hand; `slots` None: as many as it has in the configuration."""

    url: str
    slots: int | None
    state: State
    changed_at: datetime


def wanted_servers(
    configured: Sequence[InstanceAddress], changes: Sequence[ServerChange]
) -> list[InstanceAddress]:
    """Those of the configuration as they were changed, then those that were added. Pure."""
    wanted = {address_of(one.url): one for one in configured}
    for change in changes:
        before = wanted.get(change.url, InstanceAddress(change.url))
        if change.state == "removed":
            wanted.pop(change.url, None)
        else:
            slots = change.slots or before.slots
            wanted[change.url] = InstanceAddress(before.url, slots, change.state == "draining")
    return list(wanted.values())


class ModelServers:
    """Keeps the servers of a pool as they are wanted, and takes what is wanted by hand."""

    def __init__(
        self, pool: GenerationPool, configured: Sequence[InstanceAddress], sessions: Sessions
    ) -> None:
        self._pool = pool
        self._configured = list(configured)
        self._sessions = sessions
        self._changes: Sequence[ServerChange] = []
        self._reading = asyncio.Lock()
        self._file = settings_file()
        self._file_changed_at = _changed_at(self._file)

    @property
    def changes(self) -> Sequence[ServerChange]:
        """What holds by hand, as it was last read."""
        return self._changes

    async def change(self, wishes: Sequence[tuple[str, int | None, Wish]]) -> None:
        """All of it or nothing, for all processes and for good; `slots` None leaves them.

        Raises NotFound when a server that is not there is to go, InvalidInput for what is no URL or
        holds a password that the configuration does not, Conflict past MAX_CHANGED.
        """
        with translated_errors():
            async with self._sessions.begin() as session:
                await session.execute(_ONE_AFTER_THE_OTHER)
                stored = await session.scalars(select(ModelServerChange))
                rows = {row.address: row for row in stored}
                for wish in wishes:
                    await self._note(session, rows, *wish)
                if len(rows) > MAX_CHANGED:
                    raise Conflict(
                        f"At most {MAX_CHANGED} servers are otherwise than configured.",
                        hint="Write them into the configuration, then set them to `configured`.",
                    )
        await self._read_changes()
        self._apply()

    async def follow(self) -> None:
        """Look for changes until the service stops; what cannot be read changes nothing."""
        while True:
            try:
                await self._read_configuration()
                await self._read_changes()
            except FootnoteError as error:
                log.info("model_servers_not_read", reason=error.detail)
            except Exception:
                log.exception("model_servers_not_read")
            self._apply()
            await asyncio.sleep(LOOK_SECONDS)

    async def _note(
        self,
        session: AsyncSession,
        rows: dict[str, ModelServerChange],
        url: str,
        slots: int | None,
        wish: Wish,
    ) -> None:
        address = address_of(url)
        row = rows.get(address)
        configured = {address_of(one.url) for one in self._configured}
        if wish != "serving" and row is None and address not in configured:
            raise NotFound(f"There is no model server {address}.")
        if address not in configured and httpx.URL(url).userinfo:
            raise InvalidInput(
                f"{address} is given with a password, which is not kept.",
                hint="Give a server that asks for one in FOOTNOTE_OLLAMA_URLS.",
            )
        # What the configuration does not have is forgotten when it goes.
        if wish == "configured" or (wish == "removed" and address not in configured):
            if row is not None:
                await session.delete(rows.pop(address))
            return
        if row is None:
            row = rows[address] = ModelServerChange(address=address, state=wish)
            session.add(row)
        row.state = wish
        if slots is not None:
            row.slots = slots

    async def _read_configuration(self) -> None:
        changed_at = await asyncio.to_thread(_changed_at, self._file)
        if changed_at == self._file_changed_at:
            return
        self._file_changed_at = changed_at
        try:
            urls = (await asyncio.to_thread(load_settings)).ollama_urls
            self._configured = parse_instances(urls) or self._configured
        except FootnoteError as error:
            log.warning("configuration_not_read", path=str(self._file), reason=error.detail)

    async def _read_changes(self) -> None:
        # One after the other, so that what was read before a change does not undo it.
        async with self._reading:
            with translated_errors():
                async with self._sessions() as session:
                    self._changes = [ServerChange(*row) for row in await session.execute(CHANGES)]

    def _apply(self) -> None:
        self._pool.configure(wanted_servers(self._configured, self._changes))


CHANGES = select(
    ModelServerChange.address,
    ModelServerChange.slots,
    ModelServerChange.state,
    ModelServerChange.changed_at,
).order_by(ModelServerChange.address)
"""The rows of ServerChange."""

# Readers go on; whoever changes something sees what was changed before.
_ONE_AFTER_THE_OTHER = text("LOCK TABLE model_server_changes IN SHARE ROW EXCLUSIVE MODE")


def _changed_at(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
