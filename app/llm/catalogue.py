"""Which models a tenant's questions can be answered by: the configuration's and the tenant's own.

The operator names providers and their addresses; a tenant's admin may register further models of
these providers, for his tenant alone, and says whether what is asked may leave the house.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import structlog
from pydantic import ValidationError
from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.access import Caller
from app.config import Settings
from app.db.models import Experiment, LanguageModel, Tenant
from app.db.session import Sessions
from app.db.statements import Statements
from app.db.transactions import translated_errors
from app.errors import Conflict, Forbidden, InvalidInput, NotFound
from app.language_models import OLLAMA, ModelSpec, check_models

MAX_REGISTERED = 100
"""Models that one tenant may register."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Registered:
    """A model; `id` and `created_at` are None for one of the configuration."""

    spec: ModelSpec
    id: UUID | None = None
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Catalogue:
    """One tenant's models in the order in which they are tried, the configuration's first.

    `cloud_allowed`: the tenant lets what is asked leave the operator's machines.
    """

    models: tuple[Registered, ...]
    cloud_allowed: bool

    @property
    def specs(self) -> tuple[ModelSpec, ...]:
        return tuple(one.spec for one in self.models)

    def find(self, name: str) -> ModelSpec | None:
        return next((one for one in self.specs if one.name == name), None)


class ModelInUse(NamedTuple):
    """A model by its provider, and by what that calls it."""

    provider: str
    upstream_name: str


@dataclass(frozen=True, slots=True)
class TenantSettings:
    name: str
    cloud_models: bool


class Registry:
    """Reads and changes what tenants registered. Raises DatabaseUnavailable, never guesses."""

    def __init__(self, sessions: Sessions, statements: Statements, settings: Settings) -> None:
        self._sessions = sessions
        self._statements = statements
        # Without a server for it, the model that is there by default is none.
        self._configured = settings.all_models if settings.ollama_urls else settings.models
        self._providers = frozenset([OLLAMA, *settings.all_providers])

    async def catalogue(self, tenant_id: int) -> Catalogue:
        """As it stands now: what a tenant has forbidden is forbidden from the next question on."""
        rows = await self._statements.fetch_together(_CATALOGUE, {"tenant_id": tenant_id})
        own = self._not_configured(_Row(*row[1:]) for row in rows if row[1] is not None)
        allowed = bool(rows and rows[0][0])
        return Catalogue((*map(Registered, self._configured), *own), cloud_allowed=allowed)

    async def add(self, caller: Caller, spec: ModelSpec) -> Registered:
        """Register a model for the caller's tenant.

        Raises Forbidden for a key that is limited to collections, Conflict where there is one of this name, InvalidInput for a provider that is not
        configured or a baseline that is none.
        """
        _check_unlimited(caller)
        with translated_errors():
            async with self._sessions.begin() as session:
                # One after the other, so that two cannot take the last place or the same name.
                await _lock(session, caller.tenant_id)
                own = await self._own(session, caller.tenant_id)
                known = [*self._configured, *(one.spec for one in own)]
                if spec.name in {one.name for one in known}:
                    raise Conflict(
                        f"There is a model {spec.name} already.",
                        hint="Choose another name; `served_as` says how its provider calls it.",
                    )
                if len(own) >= MAX_REGISTERED:
                    raise Conflict(f"A tenant registers at most {MAX_REGISTERED} models.")
                try:
                    check_models([*known, spec], self._providers)
                except ValueError as error:
                    raise InvalidInput(
                        f"{error}.", hint="Providers are configured by the operator."
                    ) from None
                row = LanguageModel(
                    tenant_id=caller.tenant_id,
                    name=spec.name,
                    spec=spec.model_dump(mode="json", exclude={"name"}, exclude_defaults=True),
                )
                session.add(row)
                await session.flush()
                await session.refresh(row)
                return Registered(spec, row.id, row.created_at)

    async def remove(self, caller: Caller, model_id: UUID) -> Registered:
        """Raises NotFound, and Conflict while a variant or an experiment needs the model.

        For a key that is limited to collections there is nothing to remove.
        """
        with translated_errors():
            async with self._sessions.begin() as session:
                await _lock(session, caller.tenant_id)
                own = await self._own(session, caller.tenant_id)
                found = next((one for one in own if one.id == model_id), None)
                if found is None or caller.collections is not None:
                    raise NotFound("There is no such registered model.")
                variants = [one.spec.name for one in own if one.spec.baseline == found.spec.name]
                if variants:
                    raise Conflict(
                        f"{', '.join(variants)} would have nothing to fall back on.",
                        hint="Remove the variants first.",
                    )
                asking = await _experiment_that_asks_for(session, caller.tenant_id, found.spec.name)
                if asking is not None:
                    raise Conflict(
                        f"The experiment {asking!r} asks for it.",
                        hint="Finish the experiment or roll it back first.",
                    )
                await session.execute(
                    delete(LanguageModel).where(
                        LanguageModel.id == model_id, LanguageModel.tenant_id == caller.tenant_id
                    )
                )
                return found

    async def models_in_use(self) -> frozenset[ModelInUse]:
        """The configuration's models, and what any tenant registered."""
        with translated_errors():
            async with self._sessions() as session:
                registered = (await session.execute(REGISTERED)).all()
        configured = (ModelInUse(one.provider, one.upstream_name) for one in self._configured)
        return frozenset({*configured, *(ModelInUse(*row) for row in registered)})

    async def tenant(self, caller: Caller) -> TenantSettings:
        with translated_errors():
            async with self._sessions() as session:
                return await _settings_of(session, caller.tenant_id)

    async def allow_cloud(self, caller: Caller, allowed: bool) -> TenantSettings:
        """Whether the tenant's questions may go to models elsewhere, from the next one on.

        Raises Forbidden for a key that is limited to collections: it is about all of them.
        """
        _check_unlimited(caller)
        with translated_errors():
            async with self._sessions.begin() as session:
                await session.execute(
                    update(Tenant).where(Tenant.id == caller.tenant_id).values(cloud_models=allowed)
                )
                return await _settings_of(session, caller.tenant_id)

    async def _own(self, session: AsyncSession, tenant_id: int) -> Sequence[Registered]:
        """The tenant's own, oldest first, without those that the configuration has by now."""
        rows = await session.scalars(
            select(LanguageModel)
            .where(LanguageModel.tenant_id == tenant_id)
            .order_by(LanguageModel.created_at, LanguageModel.id)
        )
        return self._not_configured(rows)

    def _not_configured(self, rows: Iterable["LanguageModel | _Row"]) -> list[Registered]:
        taken = {one.name for one in self._configured}
        read = (_registered(row) for row in rows if row.name not in taken)
        return [one for one in read if one is not None]


class _Row(NamedTuple):
    id: UUID
    name: str
    spec: dict[str, Any]
    created_at: datetime


_CATALOGUE = """
    SELECT t.cloud_models, m.id, m.name, m.spec, m.created_at
    FROM tenants AS t LEFT JOIN language_models AS m ON m.tenant_id = t.id
    WHERE t.id = %(tenant_id)s ORDER BY m.created_at, m.id
"""
"Whether the tenant allows models elsewhere, and its own models, oldest first."

REGISTERED = select(
    func.coalesce(LanguageModel.spec["provider"].as_string(), OLLAMA),
    func.coalesce(LanguageModel.spec["served_as"].as_string(), LanguageModel.name),
).distinct()
"""Provider and the provider's name of every model that any tenant registered."""


def _check_unlimited(caller: Caller) -> None:
    if caller.collections is not None:
        raise Forbidden(
            "A key that is limited to collections may not change what concerns the whole tenant.",
            hint="Use a key with the scope admin that is not limited.",
        )


async def _experiment_that_asks_for(
    session: AsyncSession, tenant_id: int, model: str
) -> str | None:
    """The running experiment of which an arm names the model."""
    return await session.scalar(
        select(Experiment.name).where(
            Experiment.tenant_id == tenant_id,
            Experiment.status == "running",
            Experiment.arms.contains([{"model": model}]),
        )
    )


async def _lock(session: AsyncSession, tenant_id: int) -> None:
    await session.execute(
        select(Tenant.id).where(Tenant.id == tenant_id).with_for_update(key_share=True)
    )


async def _settings_of(session: AsyncSession, tenant_id: int) -> TenantSettings:
    query = select(Tenant.name, Tenant.cloud_models).where(Tenant.id == tenant_id)
    name, cloud_models = (await session.execute(query)).one()
    return TenantSettings(name, cloud_models)


def _registered(row: LanguageModel | _Row) -> Registered | None:
    try:
        return Registered(
            ModelSpec.model_validate({**row.spec, "name": row.name}), row.id, row.created_at
        )
    except ValidationError:
        # Of a later version: better one model less than no answer at all.
        log.warning("registered_model_not_read", model=row.name)
        return None
