"""The address of the service: taken, looked up, and found taken by somebody else."""

import errno
import socket
from collections.abc import Generator
from contextlib import contextmanager

import httpx

from app.config import Settings
from app.errors import PortTaken, StartupError

PROBE_TIMEOUT_SECONDS = 2.0

WILDCARD_HOSTS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - looked up


@contextmanager
def open_listener(settings: Settings) -> Generator[socket.socket]:
    """A listening socket at the configured address; raises PortTaken or StartupError.

    It listens at once, so that nobody else can take the port while models are loaded.
    """
    try:
        family, kind, _, _, target = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise StartupError(
            f"FOOTNOTE_HOST {settings.host} is not an address: {error.strerror}.",
            hint="Set FOOTNOTE_HOST to an address of this machine, such as 127.0.0.1.",
        ) from error
    with socket.socket(family, kind) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(target)
            listener.listen()
        except OSError as error:
            raise _cannot_listen(settings, error) from error
        yield listener


def _cannot_listen(settings: Settings, error: OSError) -> StartupError:
    where = f"{settings.host}:{settings.port}"
    if error.errno != errno.EADDRINUSE:
        return StartupError(
            f"Footnote cannot listen on {where}: {error.strerror}.",
            hint="Set FOOTNOTE_HOST to an address of this machine and FOOTNOTE_PORT above 1023.",
        )
    if is_footnote(base_url(settings)):
        return PortTaken(
            f"Footnote itself already answers on {where}.",
            hint=f"Use it at {base_url(settings)}, or set FOOTNOTE_PORT and FOOTNOTE_HOME to run"
            " a second one.",
        )
    return PortTaken(
        f"Another program listens on {where}.",
        hint="End it, or choose another port: FOOTNOTE_PORT=8009.",
    )


def base_url(settings: Settings, *, port: int | None = None) -> str:
    """Where a client on this machine reaches the service of these settings."""
    host = WILDCARD_HOSTS.get(settings.host, settings.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port or settings.port}"


def is_footnote(url: str) -> bool:
    """Whether a Footnote answers at the URL."""
    try:
        reply = httpx.get(f"{url}/health/live", timeout=PROBE_TIMEOUT_SECONDS, trust_env=False)
        return reply.is_success and reply.json() == {"alive": True}
    except (httpx.HTTPError, ValueError):
        return False
