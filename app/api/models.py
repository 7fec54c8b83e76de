"""Embedding models: listed, switched, led back, dropped."""

from collections.abc import Sequence

from fastapi import APIRouter

from app.api.bodies import BodyRoute
from app.api.problems import DOCUMENTED
from app.api.schemas_models import (
    ChosenCollections,
    ModelInfo,
    ModelList,
    ModelUseInfo,
    NewSwitch,
    SwitchInfo,
    SwitchList,
)
from app.db.model_switches import Switch
from app.dependencies import CallerDep, SwitchesDep

router = APIRouter(route_class=BodyRoute, tags=["models"], responses=DOCUMENTED)


@router.get("/api/models/embedding")
async def list_models(caller: CallerDep, switches: SwitchesDep) -> ModelList:
    """The models that there are vectors of, and the configured one."""
    return ModelList(
        models=[
            ModelInfo(
                name=one.name,
                digest=one.digest,
                dimensions=one.dimensions,
                configured=one.configured,
                bytes=one.bytes,
                collections=[
                    ModelUseInfo(collection=use.collection, state=use.state, vectors=use.vectors)
                    for use in one.uses
                ],
            )
            for one in await switches.models(caller)
        ]
    )


@router.get("/api/models/switches")
async def list_switches(caller: CallerDep, switches: SwitchesDep) -> SwitchList:
    """The models beside those that serve, and how far each one is."""
    return _listed(await switches.switches(caller))


@router.post("/api/models/switches", status_code=202)
async def begin_switch(body: NewSwitch, caller: CallerDep, switches: SwitchesDep) -> SwitchList:
    """Embed collections with another model behind the one that serves, and let it serve then.

    The reply comes when the model is loaded, which takes a while the first time.
    """
    return _listed(
        await switches.begin(
            caller,
            body.model,
            body.collections,
            activate=body.activate,
            keep_old=body.keep_old,
        )
    )


@router.post("/api/models/switches/activate", status_code=202)
async def activate_switches(
    body: ChosenCollections, caller: CallerDep, switches: SwitchesDep
) -> SwitchList:
    """Let the models that are prepared serve, all at once."""
    return _listed(await switches.activate(caller, body.collections))


@router.post("/api/models/switches/rollback", status_code=202)
async def roll_back_switches(
    body: ChosenCollections, caller: CallerDep, switches: SwitchesDep
) -> SwitchList:
    """Let the models that served before serve again, all at once."""
    return _listed(await switches.roll_back(caller, body.collections))


@router.post("/api/models/switches/drop", status_code=202)
async def drop_switches(
    body: ChosenCollections, caller: CallerDep, switches: SwitchesDep
) -> SwitchList:
    """Remove the vectors of the models that do not serve; one that is being prepared too."""
    return _listed(await switches.drop(caller, body.collections))


def _listed(switches: Sequence[Switch]) -> SwitchList:
    return SwitchList(
        switches=[
            SwitchInfo(
                collection=one.collection,
                serving=one.serving_name,
                model=one.model_name,
                status=one.status,
                activates=one.activates,
                embedded=one.embedded,
                passages=one.chunks_count,
                reason=one.reason,
                switch_id=one.switch_id,
                job_id=one.job_id,
                created_at=one.created_at,
            )
            for one in switches
        ]
    )
