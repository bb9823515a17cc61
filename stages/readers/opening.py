"""Opening text files: decompression, and the marks of files that are no UTF-8 text."""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.stage import reason

PACKINGS = (".gz", ".bz2", ".xz", ".zst")
"""Endings of compressed files."""
DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""Errors of opening a file, and of decompressing one that is damaged."""
FOREIGN = {
    codecs.BOM_UTF32_LE: "UTF-32 text, expected UTF-8",
    codecs.BOM_UTF16_LE: "UTF-16 text, expected UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16 text, expected UTF-8",
    b"PAR1": "a Parquet file, whose name must end in .parquet",
    b"ARROW1": "an Arrow file, whose name must end in .arrow",
    b"PK\x03\x04": "a zip archive, expected one of the files inside",
    **{bytes([0x80, protocol]): "a pickle, expected UTF-8 text" for protocol in range(2, 6)},
    b"version https://git-lfs": "a pointer of Git LFS, expected the file itself, which `git lfs pull` gets",
}
"""First bytes of files that are no UTF-8 text, and what such a file is."""
AS_IS = "surrogateescape"
"""How bytes that are not UTF-8 are decoded, so that they can be written as they were."""
CHUNK = 1 << 12
"""Compressed bytes that are decompressed at once. They hold at most 128 MiB: four bytes of zstd can be a block."""


class UnreadableFileError(Exception):
    """A text file cannot be read; the message is a predicate that follows its name, "is not JSON on line 3 (...)"."""


@contextmanager
def open_text(path: Path) -> Iterator[io.BufferedReader]:
    """Open a text file for reading bytes, decompressed and without the UTF-8 byte-order mark.

    Its first bytes, not its name, tell how it is compressed.
    """
    try:
        with path.open("rb") as packed, _unpack(path, packed) as file:
            start = file.peek(32)
            check_start(start)
            if b"\0" in start[:2]:
                raise UnreadableFileError(f"is {FOREIGN[codecs.BOM_UTF16_LE]}")
            if start.startswith(codecs.BOM_UTF8):
                file.read(len(codecs.BOM_UTF8))
            yield file
    except DAMAGE as error:
        raise UnreadableFileError(f"cannot be read ({reason(error)})") from error


def check_start(start: bytes, *, but: bytes = b"") -> None:
    """Raise `UnreadableFileError` if a file begins like one of another format than that which begins with `but`."""
    if what := next((what for mark, what in FOREIGN.items() if start.startswith(mark) and mark != but), ""):
        raise UnreadableFileError(f"is {what}")


def _unpack(path: Path, file: io.BufferedReader) -> io.BufferedReader:
    start = file.peek(8)
    if not start and path.suffix.lower() in PACKINGS:
        raise EOFError("it is empty, and a compressed file never is")
    readers: dict[bytes, Callable[[io.BufferedReader], Any]] = {
        b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
        b"BZh" + start[3:4] + b"1AY&": bz2.BZ2File,
        b"BZh" + start[3:4] + b"\x17rE8": bz2.BZ2File,  # of no bytes
        b"\xfd7zXZ\0": lzma.LZMAFile,
        b"\x28\xb5\x2f\xfd": _Zstandard,
    }
    reader = next((reader for mark, reader in readers.items() if start.startswith(mark)), None)
    if start[1:4] == b"\x2a\x4d\x18":  # a frame of zstd to skip
        reader = _Zstandard
    return io.BufferedReader(reader(file)) if reader else file


class _Zstandard(io.RawIOBase):
    """The bytes in frames of zstd, whose windows may be as long as `zstd --long=31` makes them.

    Other readers take a frame that is cut short for a whole one, or refuse long windows.
    """

    def __init__(self, file: io.BufferedReader) -> None:
        self._file, self._packed, self._ready = file, b"", memoryview(b"")
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401  any buffer
        import zstandard

        while not self._ready:
            packed = self._packed or self._file.read(CHUNK)
            if not packed:
                if self._frame:
                    raise EOFError("the last frame of zstd is cut short")
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            try:
                self._ready = memoryview(self._frame.decompress(packed))
            except zstandard.ZstdError as error:
                raise OSError(str(error)) from error
            self._packed = b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size


def read_text(path: Path) -> str:
    """The text of a file; bytes that are not UTF-8 become U+FFFD."""
    with open_text(path) as file:
        return file.read().decode("utf-8", "replace")
