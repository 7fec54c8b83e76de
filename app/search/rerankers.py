"""Which rerankers this service has: its own, as it is configured, and those that need no choice."""

from functools import partial

from app.config import Settings
from app.embedding.base import Embedder, ReadsTokens, TokenEmbedder
from app.embedding.loading import usable_cores
from app.embedding.token_signs import TokenReader
from app.errors import StartupError
from app.search.reranking import Lane, Rerankers
from app.terms import extract_terms
from reranker.base import Reranker, RerankerUnavailable
from reranker.late_interaction import LateInteraction
from reranker.loading import open_cross_encoder
from reranker.remote import CONNECTIONS, RemoteReranker

NONE = frozenset({"", "off"})


LATE_INTERACTION = "late-interaction"


def rerankers_of(settings: Settings, embedder: Embedder | None = None) -> Rerankers:
    """All of them, yet to be loaded: the service's own at its start, the others when needed.

    The `embedder` is what late interaction reads passages with.
    """
    own = "" if settings.reranker in NONE else settings.reranker
    lanes: dict[str, Lane] = {}
    if isinstance(embedder, ReadsTokens):
        lanes[LATE_INTERACTION] = Lane(partial(_open_late_interaction, embedder))
    if own.startswith(("http://", "https://")):
        # Threads that wait for a server take nothing from each other.
        lanes[own] = Lane(partial(_open_remote, settings), at_once=CONNECTIONS)
    elif own and own not in lanes:
        lanes[own] = Lane(partial(_open_local, own, settings))
    return Rerankers(lanes, settings, own=own)


def open_own(rerankers: Rerankers) -> None:
    """Load the service's own reranker; blocks. Raises StartupError when it cannot be had."""
    if not rerankers.own:
        return
    try:
        rerankers.open(rerankers.own)
    except RerankerUnavailable as error:
        raise StartupError(
            f"FOOTNOTE_RERANKER: {error}.",
            hint="Set it to the folder or name of a cross-encoder, to the address of a server "
            "with /v1/rerank, or to nothing.",
        ) from error


def _open_late_interaction(embedder: TokenEmbedder) -> Reranker:
    reader = TokenReader(embedder, lambda word: bool(extract_terms(word)))
    return LateInteraction(reader.read, name=LATE_INTERACTION, digest=embedder.digest)


def _open_local(name: str, settings: Settings) -> Reranker:
    return open_cross_encoder(
        name,
        cache=settings.model_cache,
        runtime=settings.reranker_runtime,
        int8=settings.reranker_int8,
        threads=usable_cores(),
        max_tokens=settings.reranker_max_tokens,
    )


def _open_remote(settings: Settings) -> Reranker:
    key = settings.reranker_api_key
    return RemoteReranker(
        settings.reranker,
        model=settings.reranker_model,
        api_key=key.get_secret_value() if key is not None else None,
        timeout_seconds=settings.rerank_timeout_seconds,
    )
