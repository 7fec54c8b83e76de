"""The service, as a table of contents: what a request passes, and where it can go."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from app.api import (
    cache,
    chat,
    collections,
    costs,
    documents,
    duplicates,
    experiments,
    health,
    instances,
    jobs,
    language_models,
    models,
    operations,
    problems,
    rerank,
    search,
    sources,
)
from app.api.doors import routes_without_a_door
from app.api.health import Health
from app.api.middleware import AccessControl, Admission, BodyLimit, HostGuard, RequestContext
from app.api.rate_limit import RateLimitMiddleware, RateLimits
from app.config import Settings
from app.resources import open_resources
from app.web import pages

DESCRIPTION = "A self-hosted knowledge base that answers with footnotes."


def create_app(settings: Settings, *, redis_kind: str = "external") -> FastAPI:
    """The application on the database and the Redis of the settings.

    Its resources open when it starts and close when it stops; starting raises StartupError as
    `open_resources` does.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with open_resources(settings, redis_kind=redis_kind) as resources:
            app.state.resources = resources
            app.state.rate_limits = RateLimits(settings, resources.redis)
            app.state.health = Health(resources)
            try:
                yield
            finally:
                await app.state.health.close()

    app = FastAPI(
        title="Footnote",
        description=DESCRIPTION,
        version=health.VERSION,
        lifespan=lifespan,
        redirect_slashes=False,
        # Their pages load scripts from elsewhere; /openapi.json opens in any viewer.
        docs_url=None,
        redoc_url=None,
    )

    # Outermost last, as Starlette has it.
    app.add_middleware(BodyLimit, settings=settings)
    app.add_middleware(Admission, settings=settings)
    app.add_middleware(RateLimitMiddleware)
    app.add_middleware(AccessControl, settings=settings)
    app.add_middleware(HostGuard, settings=settings)
    app.add_middleware(RequestContext)
    problems.install(app)

    # Routes are tried in this order: first what is called most.
    app.include_router(chat.router)
    app.include_router(search.router)
    app.include_router(collections.router)
    app.include_router(documents.router)
    app.include_router(duplicates.router)
    app.include_router(jobs.router)
    app.include_router(sources.router)
    app.include_router(models.router)
    app.include_router(language_models.router)
    app.include_router(rerank.router)
    app.include_router(costs.router)
    app.include_router(instances.router)
    app.include_router(experiments.router)
    app.include_router(health.router)
    app.include_router(operations.router)
    app.include_router(cache.router)
    app.include_router(pages.router)

    open_routes = routes_without_a_door(app)
    if open_routes:
        raise RuntimeError(f"app/api/doors.py has no line for {', '.join(open_routes)}")
    return app
