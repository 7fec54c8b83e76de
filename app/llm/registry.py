"""The chat model that the settings name."""

from collections.abc import Sequence

import httpx

from app.config import Settings
from app.errors import StartupError
from app.llm.base import GenerationOptions
from app.llm.pool import GenerationPool, InstanceAddress, PoolLimits

DEFAULT_SLOTS = 1
"""What Ollama itself does by default (OLLAMA_NUM_PARALLEL), and no API of it tells."""


def open_chat_model(settings: Settings) -> GenerationPool | None:
    """A pool over FOOTNOTE_OLLAMA_URLS; None when there are none. Connects to nothing yet.

    Raises StartupError for an address that is not one.
    """
    if not settings.ollama_urls:
        return None
    return GenerationPool(
        parse_instances(settings.ollama_urls),
        settings.model,
        generation_options(settings),
        PoolLimits(
            queue_size=settings.generation_queue_size,
            queue_timeout_seconds=settings.generation_queue_timeout_seconds,
            connect_timeout_seconds=settings.generation_connect_timeout_seconds,
            first_token_timeout_seconds=settings.generation_first_token_timeout_seconds,
            stall_timeout_seconds=settings.generation_stall_timeout_seconds,
            batch_timeout_seconds=settings.generation_batch_timeout_seconds,
            owner_concurrency=settings.generation_key_concurrency,
            owner_tokens_per_minute=settings.generation_key_tokens_per_minute,
        ),
    )


def generation_options(settings: Settings, context_tokens: int | None = None) -> GenerationOptions:
    """The options of every request to a model, which may have a context of its own."""
    return GenerationOptions(
        max_tokens=settings.generation_max_tokens,
        context_tokens=context_tokens or settings.generation_context_tokens,
    )


def parse_instances(given: Sequence[str]) -> list[InstanceAddress]:
    """Each with its slots; raises StartupError for what is no address, or stands there twice."""
    addresses = [parse_instance(one) for one in given]
    _refuse_repeated([one.url for one in addresses])
    return addresses


def parse_instance(given: str) -> InstanceAddress:
    """URL and slots from `url#slots=4`; raises StartupError that says what is wrong."""
    address, _, fragment = given.partition("#")
    slots = DEFAULT_SLOTS
    if fragment:
        key, _, value = fragment.partition("=")
        if key != "slots" or not value.isascii() or not value.isdigit() or int(value) < 1:
            raise _refused(given, "after # only slots=NUMBER may stand, with a number above 0")
        slots = int(value)
    try:
        url = httpx.URL(address if "://" in address else f"http://{address}")
    except httpx.InvalidURL as error:
        raise _refused(given, str(error)) from None
    if url.scheme not in ("http", "https") or not url.host:
        raise _refused(given, "it is not an http or https URL")
    return InstanceAddress(str(url), slots)


def _refuse_repeated(urls: Sequence[str]) -> None:
    for url in urls:
        if urls.count(url) > 1:
            raise _refused(url, "it is given twice; raise its slots instead")


def _refused(given: str, why: str) -> StartupError:
    return StartupError(
        f"FOOTNOTE_OLLAMA_URLS: {given!r} is not usable: {why}.",
        hint="Give addresses such as http://10.0.0.5:11434#slots=4, separated by commas.",
    )
