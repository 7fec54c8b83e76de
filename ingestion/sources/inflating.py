"""Undoing compression piece by piece, so that no more than is allowed ever stands in memory."""

import zlib
from collections.abc import Iterator

PIECE_BYTES = 64 * 1024
_GZIP = 16 + zlib.MAX_WBITS
_ZLIB = zlib.MAX_WBITS


class Broken(Exception):
    """The data are not compressed as they claim to be, or end too early."""


class TooMuch(Exception):
    """There is more in the data than is allowed."""


class Inflater:
    """Decompresses what is fed to it, up to `max_bytes` in all; several members count as one."""

    def __init__(self, max_bytes: int, *, is_gzip: bool = True) -> None:
        self._window_bits = _GZIP if is_gzip else _ZLIB
        self._member = zlib.decompressobj(self._window_bits)
        self._free_bytes = max_bytes
        self._fed_free_bytes = max_bytes + max_bytes // 64 + PIECE_BYTES

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Raises TooMuch and Broken."""
        self._fed_free_bytes -= len(data)
        if self._fed_free_bytes < 0:
            # Empty members are something as well, when they never end.
            raise TooMuch
        while data:
            if self._member.eof:
                self._member = zlib.decompressobj(self._window_bits)
            try:
                piece = self._member.decompress(data, PIECE_BYTES)
            except zlib.error as error:
                raise Broken(str(error)) from error
            self._free_bytes -= len(piece)
            if self._free_bytes < 0:
                raise TooMuch
            if piece:
                yield piece
            data = self._member.unused_data if self._member.eof else self._member.unconsumed_tail

    def finish(self) -> None:
        """Raises Broken when something is missing at the end."""
        if not self._member.eof:
            raise Broken("it ends too early")


def inflate(data: bytes, max_bytes: int) -> bytes:
    """What a whole gzip file holds; raises TooMuch and Broken."""
    inflater = Inflater(max_bytes)
    content = b"".join(inflater.feed(data))
    inflater.finish()
    return content
