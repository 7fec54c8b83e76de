"""Models that a test names itself, in place of those in a database."""

from collections.abc import Mapping
from typing import Any, cast

from app.answering.choosing import RoutedChoice
from app.answering.kinds import FittedKinds
from app.config import Settings
from app.language_models import ModelSpec
from app.llm.base import ChatModel, GenerationOptions
from app.llm.catalogue import Catalogue, Registered
from app.llm.registry import generation_options
from app.llm.tiers import Tiers


class FixedCatalogue:
    """The same models for every tenant."""

    def __init__(self, *specs: ModelSpec, cloud_allowed: bool = False) -> None:
        self._catalogue = Catalogue(tuple(map(Registered, specs)), cloud_allowed)

    async def catalogue(self, tenant_id: int) -> Catalogue:
        return self._catalogue


class FixedModels:
    """A ModelSource of models that are there already; `obstacles` by name."""

    def __init__(
        self,
        models: Mapping[str, ChatModel],
        *,
        cloud: frozenset[str] = frozenset(),
        obstacles: Mapping[str, str] | None = None,
        settings: Settings | None = None,
    ) -> None:
        self._settings = settings or Settings()
        self._models = models
        self._cloud = cloud
        self._obstacles = obstacles or {}

    def obstacle(self, model: ModelSpec) -> str | None:
        return self._obstacles.get(model.name)

    def needs_leave(self, model: ModelSpec) -> bool:
        return model.name in self._cloud

    def open(self, model: ModelSpec) -> ChatModel:
        return self._models[model.name]

    def options(self, model: ModelSpec) -> GenerationOptions:
        return generation_options(self._settings, model.context_tokens)


def choice_of(model: ChatModel | None, settings: Settings) -> RoutedChoice:
    """The model as the only one; without one, none."""
    models = {} if model is None else {model.name: model}
    nobody = cast("Any", None)  # with one tier nothing has to be found out about the question
    return RoutedChoice(
        FixedCatalogue(*(ModelSpec(name=name) for name in models)),
        Tiers(FixedModels(models, settings=settings), settings),
        FittedKinds(),
        nobody,
        settings,
    )
