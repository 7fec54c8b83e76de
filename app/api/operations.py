"""Numbers for operators."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.api.health import HealthDep

router = APIRouter(tags=["operation"])


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"description": "Prometheus's text format", "content": {"text/plain": {}}}},
)
async def read_metrics(health: HealthDep) -> Response:
    # So that `footnote_degraded` is true now, and not since somebody last asked for the health.
    await health.report()
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
