"""What the ingestion command asks of a place where documents come from. Adapters stand beside.

A source is told what is known of its documents and answers what is there now, with whatever is
cheap to know of each: a time, a size, a tag. Only what differs is read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from app.db.documents import SourceState


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to ingest, as its source lists it.

    `uri` identifies it for ever, and people can read it. `name` ends as what it is does: a source
    that knows better (a media type) gives it a suffix that says so. `root` is the URI of the place
    that it was found through, None when it was named itself: only what was found through a place
    can be lost. `tag` is what the source calls this very content (an ETag, say), `changed_ns` when
    it last changed, in nanoseconds since 1970; each is None when it is not known or cannot be
    trusted to change with the content.
    """

    uri: str
    name: str
    root: str | None = None
    size_bytes: int | None = None
    tag: str | None = None
    changed_ns: int | None = None

    def is_as_noted(self, known: SourceState) -> bool:
        """Whether what is cheap to know proves that the content is the one noted last."""
        if self.tag is not None:
            return self.tag == known.source_tag
        return (
            self.changed_ns is not None
            and self.changed_ns == known.modified_ns
            and self.size_bytes == known.size_bytes
        )


@dataclass(frozen=True, slots=True)
class Content:
    """What an item held when it was read; `sha256` is of `content`.

    `tag` and `changed_ns` belong to this very content, as in an item, and are noted with it.
    `name` takes the place of the item's when reading told more.
    """

    content: bytes = field(repr=False)
    sha256: bytes
    tag: str | None = None
    changed_ns: int | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Unlisted:
    """Something that the source should have given, and why it cannot: `reason` is for people.

    With `is_container` it is a folder, a page of a listing or a sitemap: no document, but it may
    hold some.
    """

    item: Item
    reason: str
    is_container: bool = False


class Listing:
    """What there is at a source now. Items come in the order in which they are to be ingested."""

    def __init__(self, items: Sequence[Item], unlisted: Sequence[Unlisted] = ()) -> None:
        self.items = items
        self.unlisted = unlisted

    def has_lost(self, known: SourceState) -> bool:
        """Whether a known document that is not listed is gone: it would be listed if it were there.

        Asked only of documents that were found through a place (`known.root`). What hides behind
        something unreadable, or is left out by the selection, is not lost. Here, nothing is.
        """
        del known
        return False


class ItemUnreadable(Exception):
    """An item cannot be read; `reason` is for people.

    A transient one (a timeout, a 503) may be over in a moment; the run tries such an item again.
    """

    def __init__(self, reason: str, *, is_transient: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_transient = is_transient


class ItemGone(Exception):
    """The item was deleted at its source since it was listed, or since it was named (a 410).

    Its document goes too. Of one that never was ingested the message says what people should know.
    """

    def __init__(self, reason: str = "it is no longer there") -> None:
        super().__init__(reason)


class Source(Protocol):
    """A place where documents come from, opened for one command; its methods run side by side."""

    @property
    def location(self) -> str:
        """As the user named it."""
        ...

    @property
    def prefixes(self) -> Sequence[str]:
        """The documents that it may answer for have URIs that begin with one of these."""
        ...

    async def changes(self, known: Mapping[str, SourceState]) -> Listing:
        """What is there now; `known` is what the collection holds under `prefixes`, by URI.

        Raises a FootnoteError for a place that cannot be listed at all: a folder or a bucket that
        is away as a whole must not look like an empty one.
        """
        ...

    async def read(self, item: Item, known: SourceState | None, max_bytes: int) -> Content | None:
        """What the item holds; None when that is what was noted in `known` (as by a 304).

        `known` is None when the content is wanted in any case. Raises ItemUnreadable (also for
        what is larger than `max_bytes`, see `too_large`) and ItemGone.
        """
        ...

    async def close(self) -> None: ...


def too_large(max_bytes: int) -> str:
    """The reason to give for what is larger than may be ingested."""
    return f"it is larger than {max_bytes / 1024**2:.3g} MiB (FOOTNOTE_MAX_UPLOAD_BYTES)"
