"""Jobs: followed, cancelled, tried again; and ingestion as a whole."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request, Response
from sse_starlette import ServerSentEvent

from app.api.bodies import BodyRoute
from app.api.events import event, event_stream
from app.api.problems import DOCUMENTED
from app.api.schemas import Accepted
from app.api.schemas_ingestion import (
    MAX_JOB_ID,
    CollectionBacklogInfo,
    FailureInfo,
    IngestionInfo,
    JobInfo,
    JobPage,
    JobProgress,
    JobQuery,
    RetriedInfo,
    RetryBody,
    WorkerInfo,
)
from app.dependencies import CallerDep, OverlookDep, QueueDep, SettingsDep
from app.documents import records
from app.documents.job_states import JobState
from app.errors import NotFound

router = APIRouter(route_class=BodyRoute, tags=["jobs"], responses=DOCUMENTED)

JobId = Annotated[int, Path(ge=1, le=MAX_JOB_ID)]


@router.get("/api/jobs")
async def list_jobs(
    query: Annotated[JobQuery, Query()], caller: CallerDep, queue: QueueDep
) -> JobPage:
    """Each document's latest job, newest first, in pages; ended ones are kept for three days."""
    page = await queue.list(
        caller,
        collection=query.collection,
        status=query.status,
        limit=query.limit,
        cursor=query.cursor,
    )
    return JobPage(jobs=[_job_info(one) for one in page.jobs], next_cursor=page.next_cursor)


@router.post("/api/jobs/retry")
async def retry_jobs(body: RetryBody, caller: CallerDep, queue: QueueDep) -> RetriedInfo:
    """Try all failed documents again, as a bulk run."""
    retried = await queue.retry_failed(caller, collection=body.collection)
    return RetriedInfo(queued=retried.queued, skipped=retried.skipped)


@router.get("/api/jobs/{job_id}")
async def read_job(job_id: JobId, caller: CallerDep, queue: QueueDep) -> JobInfo:
    return _job_info(await queue.job(caller, job_id))


@router.post("/api/jobs/{job_id}/cancel")
async def cancel_job(job_id: JobId, caller: CallerDep, queue: QueueDep) -> JobInfo:
    """Stop a job: nothing comes of it any more. A version that serves goes on serving."""
    return _job_info(await queue.cancel(caller, job_id))


@router.post("/api/jobs/{job_id}/retry", status_code=202)
async def retry_job(job_id: JobId, caller: CallerDep, queue: QueueDep) -> Accepted:
    """Try a failed document again, under a new job."""
    return _accepted(await queue.retry(caller, job_id))


@router.post("/api/documents/{document_id}/retry", status_code=202, tags=["documents"])
async def retry_document(document_id: UUID, caller: CallerDep, queue: QueueDep) -> Accepted:
    """Try a failed document again."""
    return _accepted(await queue.retry_document(caller, document_id))


@router.get(
    "/api/jobs/{job_id}/events",
    response_class=Response,
    responses={
        200: {
            "description": "`progress` whenever the job changes, `done` when it has ended",
            "content": {"text/event-stream": {}},
        }
    },
)
async def follow_job(
    job_id: JobId, request: Request, caller: CallerDep, queue: QueueDep, settings: SettingsDep
) -> Response:
    states = queue.events(caller, job_id)
    return await event_stream(
        request, _progress(states), grace_seconds=settings.shutdown_grace_seconds
    )


@router.get("/api/ingestion", tags=["ingestion"])
async def report_ingestion(caller: CallerDep, overlook: OverlookDep) -> IngestionInfo:
    """What waits, how fast it goes, when it will be done, who works on it, and what failed."""
    overview = await overlook.overview(caller)
    return IngestionInfo(
        queued=overview.queued,
        processing=overview.processing,
        failed=overview.failed,
        oldest_seconds=round(overview.oldest_seconds, 1),
        rate_per_minute=round(overview.rate_per_minute, 2),
        eta_seconds=None if overview.eta_seconds is None else round(overview.eta_seconds, 1),
        workers=[
            WorkerInfo(
                id=one.id,
                heartbeat_age_seconds=round(max(0.0, one.heartbeat_age_seconds), 1),
                alive=one.is_alive,
            )
            for one in overview.workers
        ],
        collections=[
            CollectionBacklogInfo(
                name=one.name, queued=one.queued, processing=one.processing, failed=one.failed
            )
            for one in overview.collections
        ],
        failures=[
            FailureInfo(
                document_id=one.document_id,
                job_id=one.job_id,
                collection=one.collection,
                title=one.title,
                reason=one.reason,
                failed_at=one.failed_at,
            )
            for one in overview.failures
        ],
    )


async def _progress(states: AsyncIterator[JobState]) -> AsyncGenerator[ServerSentEvent]:
    async for state in states:
        yield event("done" if state.is_final else "progress", _job_info(state))
        if state.is_final:
            return
    raise NotFound("The job takes longer than anybody should wait.", hint="Follow it again.")


def _job_info(state: JobState) -> JobInfo:
    progress = state.progress
    return JobInfo(
        id=state.id,
        status=state.status,
        document_id=state.document_id,
        collection=state.collection,
        title=state.title,
        attempts=state.attempts,
        reason=state.reason,
        progress=progress
        and JobProgress(stage=progress.stage, done=progress.done, total=progress.total),
        position=state.position,
    )


def _accepted(accepted: records.Accepted) -> Accepted:
    return Accepted(
        document_id=accepted.document_id, job_id=accepted.job_id, status=accepted.status
    )
