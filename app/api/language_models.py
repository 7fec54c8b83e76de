"""Language models: listed, registered, removed; and whether a tenant's questions may leave."""

from collections.abc import Sequence
from uuid import UUID

from fastapi import APIRouter

from app.api.bodies import BodyRoute
from app.api.problems import DOCUMENTED
from app.api.schemas_language_models import (
    LanguageModelInfo,
    LanguageModelList,
    TenantChange,
    TenantInfo,
)
from app.dependencies import CallerDep, ProvidersDep, RegistryDep
from app.language_models import ModelSpec
from app.llm.catalogue import Registered
from app.llm.providers import Providers
from app.llm.tiers import why_not

router = APIRouter(route_class=BodyRoute, tags=["models"], responses=DOCUMENTED)


@router.get("/api/models/chat")
async def list_language_models(
    caller: CallerDep, registry: RegistryDep, providers: ProvidersDep
) -> LanguageModelList:
    """What the caller's questions can be answered by, in the order in which models are tried."""
    catalogue = await registry.catalogue(caller.tenant_id)
    return LanguageModelList(
        models=_listed(catalogue.models, providers, cloud_allowed=catalogue.cloud_allowed),
        cloud_models=catalogue.cloud_allowed,
    )


@router.post("/api/models/chat", status_code=201)
async def add_language_model(
    body: ModelSpec, caller: CallerDep, registry: RegistryDep, providers: ProvidersDep
) -> LanguageModelInfo:
    """Register a model of a provider that is configured, for the caller's tenant."""
    added = await registry.add(caller, body)
    tenant = await registry.tenant(caller)
    return _listed([added], providers, cloud_allowed=tenant.cloud_models)[0]


@router.delete("/api/models/chat/{model_id}")
async def remove_language_model(
    model_id: UUID, caller: CallerDep, registry: RegistryDep, providers: ProvidersDep
) -> LanguageModelInfo:
    """Remove a registered model; those of the configuration are the operator's."""
    removed = await registry.remove(caller, model_id)
    tenant = await registry.tenant(caller)
    return _listed([removed], providers, cloud_allowed=tenant.cloud_models)[0]


@router.get("/api/tenant")
async def read_tenant(caller: CallerDep, registry: RegistryDep) -> TenantInfo:
    tenant = await registry.tenant(caller)
    return TenantInfo(name=tenant.name, cloud_models=tenant.cloud_models)


@router.patch("/api/tenant")
async def change_tenant(body: TenantChange, caller: CallerDep, registry: RegistryDep) -> TenantInfo:
    """Whether questions, with the passages found for them, may go to models in the cloud."""
    tenant = await registry.allow_cloud(caller, body.cloud_models)
    return TenantInfo(name=tenant.name, cloud_models=tenant.cloud_models)


def _listed(
    models: Sequence[Registered], providers: Providers, *, cloud_allowed: bool
) -> list[LanguageModelInfo]:
    listed: list[LanguageModelInfo] = []
    for one in models:
        reason = why_not(one.spec, providers, cloud_allowed=cloud_allowed)
        listed.append(
            LanguageModelInfo(
                **one.spec.model_dump(exclude={"context_tokens"}),
                context_tokens=providers.options(one.spec).context_tokens,
                id=one.id,
                created_at=one.created_at,
                cloud=providers.needs_leave(one.spec),
                usable=reason is None,
                reason=reason,
            )
        )
    return listed
