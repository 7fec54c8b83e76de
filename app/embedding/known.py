"""Models that a database knows of: found again, and certainly the same."""

from app.config import Settings
from app.db.vectors import StoredModel
from app.embedding.base import TokenEmbedder
from app.embedding.loading import open_model
from app.embedding.model_folder import INT8, ModelIdentity, identify, locate_model
from app.errors import EmbeddingUnavailable


class ModelMissing(EmbeddingUnavailable):
    """The files that made some vectors are not on this machine any more."""


def find_known(model: StoredModel) -> ModelIdentity:
    """The model by its name, else where it was when it was registered; reads its files.

    Raises ModelMissing when it is in neither place, or is another one by now.
    """
    reasons: list[str] = []
    for place in (model.name, model.location):
        if place is None:
            continue
        try:
            found = identify(model.name, locate_model(place.removesuffix(INT8)))
        except EmbeddingUnavailable as error:
            reasons.append(error.detail)
            continue
        if found.digest == model.digest:
            return found
        reasons.append(f"The files in {found.folder} have become others.")
    raise ModelMissing(
        f"The embedding model {model.name} is not as it was: {' '.join(dict.fromkeys(reasons))}",
        hint="Put its files back, or give the collection another model: "
        "`footnote models switch MODEL --collection NAME`.",
    )


def open_known(
    settings: Settings, model: StoredModel, *, threads: int | None = None
) -> TokenEmbedder:
    """Load it; slow when it was never exported here. Raises EmbeddingUnavailable."""
    return open_model(settings, find_known(model), threads=threads)
