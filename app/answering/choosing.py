"""Chooses the model for a question: by its name, its tier, or its kind and what there is to read."""

from typing import Protocol

from app.access import Caller
from app.answering.base import Chosen, Question
from app.answering.kinds import KindReader
from app.config import Settings
from app.embedding.base import QueryEmbedding
from app.llm.catalogue import Catalogue
from app.llm.registry import generation_options
from app.llm.tiers import Nobody, Offer, Tiers
from app.llm.token_estimate import estimate_tokens
from app.search.base import SearchResult


class Catalogues(Protocol):
    async def catalogue(self, tenant_id: int) -> Catalogue:
        """What a tenant's questions can be answered by, as it stands now."""
        ...


class RoutedChoice:
    """Implements ModelChoice."""

    def __init__(
        self,
        catalogues: Catalogues,
        tiers: Tiers,
        kinds: KindReader,
        query_embedder: QueryEmbedding,
        settings: Settings,
    ) -> None:
        self._catalogues = catalogues
        self._tiers = tiers
        self._kinds = kinds
        self._embedder = query_embedder
        self._options = generation_options(settings)

    async def offered(self, caller: Caller, question: Question) -> Offer | None:
        """See ModelChoice."""
        catalogue = await self._catalogues.catalogue(caller.tenant_id)
        return self._tiers.offer(catalogue, question.model, question.tier)

    async def chosen(self, offer: Offer | None, query: str, result: SearchResult) -> Chosen:
        """See ModelChoice."""
        if offer is None:
            return Chosen(None, self._options)
        kind = None
        if offer.is_open:
            embedding = result.embedder or self._embedder
            kind = await self._kinds.kind_of(query, result.query_vector, embedding)
        evidence_tokens = sum(estimate_tokens(hit.text) for hit in result.hits)
        routed = self._tiers.route(offer, kind, evidence_tokens)
        if isinstance(routed, Nobody):
            return Chosen(None, self._options, notice=routed.notice)
        return Chosen(routed, routed.options, routed.routing)
