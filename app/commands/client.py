"""How commands reach the service: the one that runs, else one inside this process."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any, TypeVar

import httpx
import typer

from app.commands.output import quiet_settings
from app.errors import FootnoteError, StartupError
from app.listening import base_url, is_footnote
from app.telemetry import configure_logging

CONNECT_TIMEOUT_SECONDS = 2.0
REPLY_TIMEOUT_SECONDS = 300.0

Result = TypeVar("Result")

Url = Annotated[
    str | None,
    typer.Option(
        help="The service's address; without it, FOOTNOTE_HOST and FOOTNOTE_PORT.",
        metavar="URL",
        show_default=False,
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="FOOTNOTE_API_KEY",
        help="An API key, for a service that asks for one.",
        metavar="KEY",
        show_default=False,
    ),
]


class Service:
    """The service's HTTP API; a reply that is a problem is raised as a FootnoteError."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    @property
    def client(self) -> httpx.AsyncClient:
        """For whoever speaks the API himself."""
        return self._client

    async def call(self, method: str, path: str, **request: Any) -> Any:
        """The JSON of the reply."""
        with self._reaching():
            reply = await self._client.request(method, path, **request)
        return _checked(reply).json()

    async def health(self) -> Any:
        """The state of every part, also of a service that is down."""
        with self._reaching():
            reply = await self._client.get("/health")
        is_report = reply.headers.get("content-type") == "application/json"
        return reply.json() if is_report else _checked(reply).json()

    async def stream(self, path: str, body: object = None) -> AsyncGenerator[tuple[str, Any]]:
        """The events of a streamed reply, each with its name; an `error` event is raised.

        With a body it is sent, else the events are only asked for.
        """
        method = "GET" if body is None else "POST"
        with self._reaching():
            async with self._client.stream(method, path, json=body) as reply:
                if not reply.is_success:
                    await reply.aread()
                _checked(reply)
                name = ""
                async for line in reply.aiter_lines():
                    field, _, value = line.partition(": ")
                    if field == "event":
                        name = value
                    elif field == "data":
                        data = json.loads(value)
                        if name == "error":
                            raise FootnoteError(data["detail"], hint=data["hint"])
                        yield name, data

    @contextmanager
    def _reaching(self) -> Generator[None]:
        try:
            yield
        except httpx.ConnectError:
            raise StartupError(
                f"No Footnote answers at {self._client.base_url}.",
                hint="Start it with `footnote serve`, or correct the address.",
            ) from None
        except httpx.HTTPError as error:
            raise StartupError(
                f"The service at {self._client.base_url} broke off:"
                f" {str(error) or type(error).__name__}.",
                hint="Try again; the service's log may say more.",
            ) from error


def with_service(
    url: str | None,
    api_key: str | None,
    work: Callable[[Service], Awaitable[Result]],
    *,
    with_worker: bool = False,
) -> Result:
    """Do the work with the service at `url`; when None, with the one that can be had.

    `with_worker`: one that is inside this process has a worker as well, as long as this takes.
    """

    async def run() -> Result:
        async with _client(url, api_key, with_worker=with_worker) as client:
            return await work(Service(client))

    return asyncio.run(run())


@asynccontextmanager
async def _client(
    url: str | None, api_key: str | None, *, with_worker: bool
) -> AsyncGenerator[httpx.AsyncClient]:
    settings = quiet_settings()
    configure_logging(settings)
    address = url or base_url(settings)
    if url is None and not is_footnote(address):
        if settings.database_url is None and not (settings.home / "postgres").exists():
            raise StartupError(
                f"No Footnote answers at {address}, and {settings.home} holds no documents yet.",
                hint="Start it with `footnote serve`, or see it at work with `footnote demo`.",
            )
        from app.serving import private_service  # noqa: PLC0415 - heavy, and rarely needed

        async with private_service(settings, with_worker=with_worker) as client:
            client.timeout = httpx.Timeout(REPLY_TIMEOUT_SECONDS)
            yield client
        return
    async with httpx.AsyncClient(
        base_url=address,
        headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        timeout=httpx.Timeout(REPLY_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS),
        trust_env=False,
    ) as client:
        yield client


def _checked(reply: httpx.Response) -> httpx.Response:
    if reply.is_success:
        return reply
    try:
        problem = reply.json()
        raise FootnoteError(problem["detail"], hint=problem["hint"])
    except (ValueError, TypeError, KeyError):
        raise StartupError(
            f"{reply.url} answered {reply.status_code}, and not as Footnote does.",
            hint="Check the address: something else may be listening there.",
        ) from None
