"""POST /api/search."""

from time import perf_counter

from fastapi import APIRouter

from app.api.bodies import BodyRoute
from app.api.problems import DOCUMENTED, InvalidFields
from app.api.schemas import CopyInfo, HitInfo, SearchBody, SearchReply
from app.config import Settings
from app.dependencies import CallerDep, SearcherDep, SettingsDep
from app.search.base import Hit, SearchRequest

router = APIRouter(route_class=BodyRoute, tags=["search"], responses=DOCUMENTED)


@router.post("/api/search", response_model_exclude_unset=True)
async def search(
    body: SearchBody, caller: CallerDep, searcher: SearcherDep, settings: SettingsDep
) -> SearchReply:
    """Passages that answer the query, best first, with their exact places."""
    started = perf_counter()
    check_query("query", body.query, settings)
    if body.limit > settings.max_limit:
        raise InvalidFields(
            [("limit", f"at most {settings.max_limit} hits are given at once")],
            hint="Ask for fewer hits; a narrower query or a filter finds better ones.",
        )
    result = await searcher.search(
        caller,
        SearchRequest(
            query=body.query,
            collections=body.names,
            limit=body.limit,
            mode=body.mode,
            rerank=body.rerank,
            rewrite=body.rewrite,
            filters=body.filters,
            explain=body.explain,
            collapse_duplicates=body.collapse_duplicates,
            candidate_model=body.candidate_model,
        ),
    )
    reply = SearchReply(
        hits=[hit_info(hit) for hit in result.hits],
        took_ms=round((perf_counter() - started) * 1000, 2),
        cache=dict(result.cache),
    )
    if result.explanation is not None:
        reply.explanation = dict(result.explanation)
    return reply


def check_query(field: str, query: str, settings: Settings) -> None:
    if len(query) > settings.max_query_chars:
        raise InvalidFields(
            [(field, f"it has {len(query)} characters; {settings.max_query_chars} are allowed")],
            hint="Ask a shorter question; whole documents belong in POST /api/documents.",
        )


def hit_info(hit: Hit) -> HitInfo:
    info = HitInfo(
        chunk_id=hit.chunk_id,
        document_id=hit.document_id,
        collection=hit.collection,
        title=hit.title,
        uri=hit.uri,
        text=hit.text,
        heading=hit.heading,
        page=hit.page,
        start=hit.start,
        end=hit.end,
        score=hit.score,
    )
    if hit.explanation is not None:
        info.explanation = dict(hit.explanation)
    if hit.copies:
        info.copies = [
            CopyInfo(
                chunk_id=copy.chunk_id,
                document_id=copy.document_id,
                title=copy.title,
                uri=copy.uri,
            )
            for copy in hit.copies
        ]
    return info
