"""Takes a small archive apart without trusting it: a gzip stream of a tar of plain files with known names.

`tarfile` reads one header block at a time here and nothing more, because its reader follows links, sparse maps,
long names and pax records before a caller sees them. What is refused: a second gzip stream (K-Scale's runtime
would stop at the first), anything after the archive, members that are not plain files, unknown or repeated names,
sizes beyond the bounds. No member is unpacked before its header has passed, and no more than its size is.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Mapping
from typing import BinaryIO

BLOCK = tarfile.BLOCKSIZE
_CHUNK = 64 * 1024
# A tar ends in zeros up to a multiple of its record size, 10 KiB unless somebody asked for more.
_MAX_PADDING = 2**20
_MAX_PAX = 4096
# What Python's `TarFile.add` and others write in front of a member; none changes what the member is.
_HARMLESS_PAX = {b"mtime", b"atime", b"ctime", b"uid", b"gid", b"uname", b"gname", b"comment"}
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)


class _Inflater:
    """Reads one gzip stream, never further than asked."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._zlib = zlib.decompressobj(wbits=31)  # one gzip stream, its checksum and length checked at the end

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes, or fewer at the end of the stream."""
        out = bytearray()
        while len(out) < count and not self._zlib.eof:
            packed = self._zlib.unconsumed_tail or self._file.read(_CHUNK)
            more = self._zlib.decompress(packed, min(count - len(out), _CHUNK))
            if not packed and not more:
                raise ValueError("the gzip stream ends too early")
            out += more
        return bytes(out)

    def finish(self) -> None:
        """Nothing follows but the stream's own end, and that is sound."""
        if self.read(1):
            raise ValueError("bytes after the end of the archive")
        if self._zlib.unused_data or self._file.read(1):
            raise ValueError("bytes after the end of the gzip stream")


def _check_pax(records: bytes) -> None:
    """Only records that say nothing about the member's name, size or kind."""
    while records:
        digits, space, _ = records[:8].partition(b" ")
        if not space or not digits.isdigit() or not len(digits) + 3 <= int(digits) <= len(records):
            raise ValueError("a pax record without its length")
        record, records = records[len(digits) + 1 : int(digits)], records[int(digits) :]
        key, equals, _ = record.partition(b"=")
        if not equals or not record.endswith(b"\n") or key not in _HARMLESS_PAX:
            raise ValueError(f"the pax record {key[:40]!r}")


def _rest_is_zero(stream: _Inflater) -> None:
    padding = stream.read(_MAX_PADDING)
    if padding.strip(b"\0"):
        raise ValueError("something else than zeros after the last member")
    stream.finish()


def unpack(file: BinaryIO, limits: Mapping[str, int]) -> dict[str, bytes]:
    """The members of an archive.

    Args:
        file: the gzip stream.
        limits: the names that may be there, with the greatest size of each [bytes].

    Returns:
        Content by name; a name that the archive does not have is not in it.

    Raises:
        ValueError: it is not such an archive; the text says what was met.
    """
    stream = _Inflater(file)
    contents: dict[str, bytes] = {}
    described = False
    expected = f"expected exactly {', '.join(limits)}"
    while True:
        try:
            block = stream.read(BLOCK)
            if block in (b"", bytes(BLOCK)) and not described:
                _rest_is_zero(stream)
                return contents
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise ValueError(f"a broken tar header ({error})") from error
        except zlib.error as error:
            raise ValueError(f"not gzip ({error})") from error
        name, size = header.name, header.size
        if header.type == tarfile.XHDTYPE and not described:
            limit, described = _MAX_PAX, True
        else:
            if header.type not in _PLAIN or name not in limits or name in contents:
                inside = header.type in _PLAIN and name.rpartition("/")[2] in limits and "/" in name
                how = "; pack it from within its folder, by names alone" if inside else ""
                raise ValueError(
                    f"member {name[:60]!r} of type {header.type!r}; {expected}, plain files, each once{how}"
                )
            limit, described = limits[name], False
        if not 0 <= size <= limit:
            raise ValueError(f"member {name[:60]!r} of {size} bytes; expected at most {limit}")
        try:
            content = stream.read(size)
            padding = stream.read(-size % BLOCK)
        except zlib.error as error:
            raise ValueError(f"member {name[:60]!r} is damaged ({error})") from error
        if len(content) + len(padding) != size + -size % BLOCK:
            raise ValueError(f"member {name[:60]!r} ends too early")
        if described:
            _check_pax(content)
        else:
            contents[name] = content
