"""The wire of language models and of what a tenant allows."""

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, StrictBool

from app.api.schemas import Money, Wire
from app.language_models import Capability, Tier, Variant


class LanguageModelInfo(BaseModel):
    """`id` is null for a model of the configuration. Prices are in the currency of the costs.

    `cloud`: what it is asked leaves the operator's machines. `reason` says why it is not `usable`.
    """

    id: UUID | None
    name: str
    provider: str
    tier: Tier
    served_as: str
    context_tokens: int
    prompt_price_per_million: Money
    completion_price_per_million: Money
    cached_price_per_million: Money | None
    price_per_hour: Money
    capabilities: tuple[Capability, ...]
    variant: Variant | None
    baseline: str | None
    cloud: bool
    usable: bool
    reason: str | None
    created_at: datetime | None


class LanguageModelList(BaseModel):
    """`cloud_models`: the tenant allows models in the cloud."""

    models: list[LanguageModelInfo]
    cloud_models: bool


class TenantChange(Wire):
    cloud_models: StrictBool


class TenantInfo(BaseModel):
    name: str
    cloud_models: bool
