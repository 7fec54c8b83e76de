"""Buckets: S3 and whatever speaks its protocol, and through the same library Google's and Azure's.

The listing tells of each object its ETag, size and time; only what differs is fetched.
"""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import quote, unquote

import obstore
from obstore.exceptions import BaseError, InvalidPathError, NotModifiedError
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

from app.config import Settings
from app.db.documents import SourceState
from app.errors import InvalidInput, Unavailable
from ingestion.sources.base import (
    Content,
    Item,
    ItemGone,
    ItemUnreadable,
    Listing,
    Unlisted,
    too_large,
)
from ingestion.sources.selection import Selection

RETRIES = 3
RETRY_SECONDS = 30
OBJECTS_PER_PAGE = 1000

_LOCATION = re.compile(
    r"(?P<scheme>s3|gs|az)://(?P<bucket>[A-Za-z0-9][A-Za-z0-9._-]{1,62})(?P<key>/.*)?"
)
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_MESSAGE = re.compile(r"<Message>(.*?)</Message>", re.DOTALL)
_STATUS = re.compile(r"status code: (\d{3}[^:]*)")


def open_bucket(location: str, selection: Selection, settings: Settings) -> "BucketSource":
    """The source of `s3://bucket/prefix`; raises InvalidInput for what is none.

    Endpoint, region and credentials come from the settings or the environment, never from the
    location.
    """
    found = _LOCATION.fullmatch(location)
    if found is None:
        raise InvalidInput(
            f"{location} is no bucket.", hint="Write s3://BUCKET or s3://BUCKET/PREFIX."
        )
    store = _open_store(found["scheme"], found["bucket"], settings)
    return BucketSource(
        store,
        f"{found['scheme']}://{found['bucket']}/",
        unquote((found["key"] or "").lstrip("/")),
        selection,
        settings.bucket_max_objects,
    )


def _open_store(scheme: str, bucket: str, settings: Settings) -> ObjectStore:
    endpoint = settings.s3_endpoint or next(filter(None, map(os.environ.get, _ENDPOINTS)), "")
    client: Any = {
        "timeout": timedelta(seconds=settings.source_timeout_seconds),
        "allow_http": scheme == "s3" and endpoint.startswith("http://"),
    }
    retries: Any = {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS)}
    try:
        match scheme:
            case "gs":
                return GCSStore(bucket, client_options=client, retry_config=retries)
            case "az":
                return AzureStore(bucket, client_options=client, retry_config=retries)
            case _:
                return S3Store(
                    bucket, config=_s3_config(settings), client_options=client, retry_config=retries
                )
    except (BaseError, ValueError) as error:
        raise InvalidInput(
            f"The bucket {bucket} cannot be opened: {_first_line(error)}.",
            hint="Check FOOTNOTE_S3_* and the variables AWS_*.",
        ) from error


def _s3_config(settings: Settings) -> Any:
    """What the settings say; the library reads the rest from the environment."""
    key_id, secret = settings.s3_access_key_id, settings.s3_secret_access_key
    config = {
        "endpoint": settings.s3_endpoint,
        "region": settings.s3_region,
        "access_key_id": key_id.get_secret_value() if key_id else "",
        "secret_access_key": secret.get_secret_value() if secret else "",
    }
    return {name: value for name, value in config.items() if value}


class BucketSource:
    """The objects below a prefix (as of a folder), or a single one."""

    def __init__(
        self, store: ObjectStore, base: str, key: str, selection: Selection, objects_max: int
    ) -> None:
        self._store = store
        self._base = base
        self._key = key
        self._selection = selection
        self._objects_max = objects_max

    @property
    def location(self) -> str:
        return self._uri(self._key)

    @property
    def prefixes(self) -> Sequence[str]:
        return [self.location]

    async def changes(self, known: Mapping[str, SourceState]) -> Listing:
        """As `Source` says; raises Unavailable for a bucket that cannot be listed.

        Raises InvalidInput where there is nothing, and never was as far as we know.
        """
        try:
            single = await self._single()
            if single is not None:
                return Listing([single])
            if self.location in known:
                # It was an object by itself, and reading it will tell that it is gone.
                return Listing([Item(self.location, self._key.rpartition("/")[2])])
            listing = await self._list_all()
        except (BaseError, OSError) as error:
            raise Unavailable(
                f"{self.location} cannot be listed: {_reason(error)}.",
                hint="Nothing was changed. Check the bucket's name, endpoint and credentials.",
            ) from error
        if not (listing.items or listing.unlisted or any(map(listing.has_lost, known.values()))):
            raise InvalidInput(f"There is nothing at {self.location}.", hint="Check the prefix.")
        return listing

    async def read(self, item: Item, known: SourceState | None, max_bytes: int) -> Content | None:
        if item.size_bytes is not None and item.size_bytes > max_bytes:
            raise ItemUnreadable(too_large(max_bytes))
        etag = (known.source_tag or "").partition(" ")[0] if known else ""
        options: Any = {"if_none_match": f'"{etag}"'} if etag else {}
        try:
            found = await obstore.get_async(self._store, self._key_of(item.uri), options=options)
            if found.meta["size"] > max_bytes:
                raise ItemUnreadable(too_large(max_bytes))
            content = bytes(await found.bytes_async())
        except NotModifiedError:
            return None
        except FileNotFoundError as error:
            raise ItemGone("there is no such object") from error
        except (BaseError, OSError) as error:
            # The library has tried several times by now.
            raise ItemUnreadable(_reason(error)) from error
        return Content(content, hashlib.sha256(content).digest(), tag=_tag(found.meta))

    async def close(self) -> None:
        """The library closes its connections by itself."""

    # --- listing ----------------------------------------------------------------------------------

    async def _single(self) -> Item | None:
        """The object of exactly this key, if there is one."""
        if not self._key or self._key.endswith("/"):
            return None
        try:
            return self._item(await obstore.head_async(self._store, self._key), None)
        except FileNotFoundError:
            return None

    async def _list_all(self) -> "_BucketListing":
        folder = self._key.rstrip("/")
        try:
            return await self._list_flat(folder)
        except InvalidPathError:
            # One key that is no path (with `//` in it, say) would hide all the others.
            return await self._list_by_folder(folder)

    async def _list_flat(self, folder: str) -> "_BucketListing":
        listing = _BucketListing(self._root(folder), self._selection)
        stream = obstore.list(  # pyright: ignore[reportUnknownMemberType]
            self._store, folder or None, chunk_size=OBJECTS_PER_PAGE
        )
        async for page in stream:
            for meta in page:
                if not self._take(meta, folder, listing):
                    return listing
        return listing

    async def _list_by_folder(self, folder: str) -> "_BucketListing":
        listing = _BucketListing(self._root(folder), self._selection)
        pending = [folder]
        while pending:
            current = pending.pop()
            try:
                found = await obstore.list_with_delimiter_async(  # pyright: ignore[reportUnknownMemberType]
                    self._store, current or None
                )
            except InvalidPathError as error:
                if current == folder:
                    raise
                listing.miss(self._item_at(current, listing.root), _reason(error))
                continue
            for meta in found["objects"]:
                if not self._take(meta, folder, listing):
                    return listing
            pending += sorted(found["common_prefixes"], reverse=True)
        return listing

    def _take(self, meta: Any, folder: str, listing: "_BucketListing") -> bool:
        """Add an object to the listing, unless there is no more room."""
        relative = meta["path"].removeprefix(f"{folder}/") if folder else meta["path"]
        if meta["path"] == folder or not self._selection.reaches(relative):
            return True
        if len(listing.items) == self._objects_max:
            reason = f"it holds more than {self._objects_max} objects (FOOTNOTE_BUCKET_MAX_OBJECTS)"
            listing.miss(self._item_at(folder, listing.root), reason)
            return False
        listing.add(self._item(meta, listing.root))
        return True

    def _item(self, meta: Any, root: str | None) -> Item:
        key: str = meta["path"]
        return Item(
            uri=self._uri(key),
            name=key.rpartition("/")[2],
            root=root,
            size_bytes=meta["size"],
            tag=_tag(meta),
        )

    def _item_at(self, folder: str, root: str) -> Item:
        return Item(self._root(folder), folder.rpartition("/")[2], root)

    def _root(self, folder: str) -> str:
        return self._uri(f"{folder}/" if folder else "")

    def _uri(self, key: str) -> str:
        return self._base + quote(key)

    def _key_of(self, uri: str) -> str:
        return unquote(uri.removeprefix(self._base))


class _BucketListing(Listing):
    """Of the objects below `root`."""

    def __init__(self, root: str, selection: Selection) -> None:
        self.items: list[Item] = []
        self.unlisted: list[Unlisted] = []
        self.root = root
        self._selection = selection

    def add(self, item: Item) -> None:
        self.items.append(item)

    def miss(self, folder: Item, reason: str) -> None:
        self.unlisted.append(Unlisted(folder, reason, is_container=True))

    def has_lost(self, known: SourceState) -> bool:
        """Whatever lies below the root and not in a folder that could not be listed."""
        return (
            known.uri.startswith(self.root)
            and not any(known.uri.startswith(missed.item.uri) for missed in self.unlisted)
            and self._selection.reaches(unquote(known.uri.removeprefix(self.root)))
        )


def _tag(meta: Any) -> str:
    """ETag, size and time, as both a listing and a reply tell them: the time in whole seconds."""
    etag = (meta["e_tag"] or "").removeprefix("W/").strip('"')
    return f"{etag} {meta['size']} {meta['last_modified'].replace(microsecond=0).isoformat()}"


def _reason(error: Exception) -> str:
    text = str(error)
    told = _MESSAGE.search(text)
    if told is not None:
        return f"the store says: {told[1].strip()}"
    status = _STATUS.search(text)
    if status is not None:
        return f"the store answers {status[1].strip()}"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].strip()[:300]
