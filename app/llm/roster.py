"""The servers of a pool, which may come, change and go while it works; no stream is cut for it."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Literal, NamedTuple

import httpx
import structlog

from app.errors import InvalidInput, NotFound
from app.llm.endpoint_health import Breaker
from app.llm.members import Member
from app.llm.ollama import OllamaInstance, without_credentials
from app.llm.supervision import Supervisor

State = Literal["serving", "draining", "removed"]
"""Takes requests; takes no more; takes no more and is forgotten when its last one is over."""

log = structlog.get_logger(__name__)

Connect = Callable[[str], OllamaInstance]


class InstanceAddress(NamedTuple):
    """A server's URL, and how many requests it works on at once (its OLLAMA_NUM_PARALLEL)."""

    url: str
    slots: int = 1
    is_draining: bool = False


class Roster:
    """`members` is one list for everybody: whoever holds it sees every change."""

    def __init__(
        self, addresses: Sequence[InstanceAddress], connect: Connect, random: Random | None
    ) -> None:
        self._connect = connect
        self._random = random
        self.members = [self._member(address) for address in addresses]

    def change(self, url: str, slots: int | None, state: State, supervisor: Supervisor) -> None:
        """Add the server, or change what it is; `slots` None leaves them, and is 1 for a new one.

        Raises NotFound when a server that is not there is to go, InvalidInput for a URL that is
        not one.
        """
        found = self.find(url) or (self._find_leaving(url) if state == "serving" else None)
        if found is None:
            if state != "serving":
                raise NotFound(f"There is no model server {url}.")
            found = self._member(InstanceAddress(url, slots or 1))
            self.members.append(found)
            supervisor.meet(found)
        elif slots is not None:
            found.slots = slots
        found.is_removed = False
        found.is_draining = state != "serving"
        log.info("instance_changed", instance=found.address, state=state, slots=found.slots)
        if state == "removed":
            supervisor.retire(found)

    def configure(self, wanted: Sequence[InstanceAddress], supervisor: Supervisor) -> bool:
        """From now on these are there, and no others; whether that changed anything."""
        changes: list[tuple[str, int | None, State]] = []
        addresses = {address_of(one.url) for one in wanted}
        for member in self.members:
            if member.address not in addresses and not member.is_removed:
                changes.append((member.address, None, "removed"))
        for url, slots, is_draining in wanted:
            found = self.find(url)
            if found is None and not is_draining:
                changes.append((url, slots, "serving"))
            elif found is not None and (found.slots, found.is_draining) != (slots, is_draining):
                changes.append((url, slots, "draining" if is_draining else "serving"))
        for change in changes:
            self.change(*change, supervisor)
        return bool(changes)

    def find(self, url: str) -> Member | None:
        return self._first(url, is_removed=False)

    def _find_leaving(self, url: str) -> Member | None:
        """The server with its last requests: if it came back as another, these would not count."""
        return self._first(url, is_removed=True)

    def _first(self, url: str, *, is_removed: bool) -> Member | None:
        address = address_of(url)
        for member in self.members:
            if member.address == address and member.is_removed == is_removed:
                return member
        return None

    def _member(self, address: InstanceAddress) -> Member:
        return Member(address.slots, Breaker(self._random), self._connect(address.url))


def address_of(url: str) -> str:
    """The URL without credentials: the name under which people see the server."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidInput(f"{url!r} is not a URL: {error}.") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidInput(f"{url!r} is not an http or https URL.")
    return without_credentials(url)
