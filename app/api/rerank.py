"""POST /v1/rerank, in the form that Jina, Cohere, vLLM and others share."""

from time import perf_counter

import numpy as np
from fastapi import APIRouter

from app.api.bodies import BodyRoute
from app.api.problems import DOCUMENTED, InvalidFields
from app.api.schemas_rerank import RankedDocument, RerankBody, Reranked, RerankReply
from app.api.search import check_query
from app.dependencies import CallerDep, RerankersDep, SettingsDep
from app.errors import Overloaded, Unavailable
from app.search.reranking import Skipped

router = APIRouter(route_class=BodyRoute, tags=["search"], responses=DOCUMENTED)


@router.post("/v1/rerank", response_model_exclude_none=True)
async def rerank(
    body: RerankBody, _caller: CallerDep, rerankers: RerankersDep, settings: SettingsDep
) -> RerankReply:
    """How relevant each document is to the query, best first.

    By the service's reranker, else by late interaction on the embedding model; `model` says which.
    """
    started = perf_counter()
    check_query("query", body.query, settings)
    models = rerankers.models()
    if not models:
        raise Unavailable(
            "This service has no reranker, and its embedding model reads no single tokens.",
            hint="Set FOOTNOTE_RERANKER.",
        )
    model = body.model or next(iter(models))
    if model not in models:
        raise InvalidFields(
            [("model", f"there is no reranker {model} here")],
            hint=f"Leave it out, or name one of: {', '.join(models)}.",
        )
    try:
        scores = await rerankers.score_all(
            models[model], body.query, body.texts, settings.request_timeout_seconds
        )
    except Skipped as skipped:
        refusal = Overloaded if skipped.kind == "busy" else Unavailable
        raise refusal(f"{model} gave no scores: {skipped}.") from skipped
    order: list[int] = np.argsort(-scores, kind="stable")[: body.top_n].tolist()
    return RerankReply(
        model=model,
        results=[
            Reranked(
                index=place,
                relevance_score=float(scores[place]),
                document=RankedDocument(text=body.texts[place]) if body.return_documents else None,
            )
            for place in order
        ],
        took_ms=round((perf_counter() - started) * 1000, 2),
    )
