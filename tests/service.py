"""The whole application in this process, on a database of the test's own."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from sqlalchemy import make_url

from app.config import Settings
from app.main import create_app
from app.resources import Resources
from ingestion.worker import run_worker

HOME_URL = "http://127.0.0.1:8008"


@dataclass(frozen=True)
class Service:
    """`client` calls it as the person at the machine does; where keys are asked for, add one."""

    app: FastAPI
    client: httpx.AsyncClient

    @property
    def resources(self) -> Resources:
        resources: Resources = self.app.state.resources
        return resources

    async def key(self, *scopes: str, **limits: Collection[str] | None) -> dict[str, str]:
        """The header of a new key."""
        options: Any = limits
        _, token = await self.resources.keyring.create("test", scopes=scopes, **options)
        return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def open_service(settings: Settings) -> AsyncGenerator[Service]:
    app = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=HOME_URL) as client,
    ):
        yield Service(app, client)


@asynccontextmanager
async def working(settings: Settings, embedder: Any) -> AsyncGenerator[None]:
    """A worker in this process, on the same database as the service."""
    assert settings.database_url is not None
    stop = asyncio.Event()
    url = settings.database_url.get_secret_value()
    worker = asyncio.create_task(
        run_worker(settings, url, concurrency=1, stop=stop, embedder=embedder)
    )
    try:
        yield
    finally:
        stop.set()
        await worker


async def ingest(service: Service, name: str, content: str, **fields: Any) -> dict[str, Any]:
    """Send a document; what is known of it once it is ready."""
    reply = await service.client.post(
        "/api/documents", files={"file": (name, content.encode())}, data=fields
    )
    assert reply.status_code == 202, reply.text
    accepted = reply.json()
    followed = await service.client.get(f"/api/jobs/{accepted['job_id']}/events", timeout=60)
    assert "event: done" in followed.text.split("\n"), followed.text
    document = await service.client.get(f"/api/documents/{accepted['document_id']}")
    assert document.json()["status"] == "ready", document.text
    found: dict[str, Any] = document.json()
    return found


def unix_socket_of(settings: Settings) -> Path:
    """Where the test's own PostgreSQL listens."""
    assert settings.database_url is not None
    query = make_url(settings.database_url.get_secret_value()).query
    return Path(str(query["host"])) / f".s.PGSQL.{query['port']}"


@asynccontextmanager
async def serving(service: Service) -> AsyncGenerator[tuple[uvicorn.Server, str]]:
    """The same service behind a real server, and its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            service.app,
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=2,
        )
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield server, f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await running


@asynccontextmanager
async def over_sockets(service: Service) -> AsyncGenerator[httpx.AsyncClient]:
    """A client that calls the service over real connections, as many as it likes."""
    limits = httpx.Limits(max_connections=None)
    async with (
        serving(service) as (_, address),
        httpx.AsyncClient(base_url=address, limits=limits, timeout=30) as client,
    ):
        yield client
