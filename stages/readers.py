"""Files that may be packed: what they are, their bytes, and whether they have changed."""

from __future__ import annotations

import gzip
import io
from collections.abc import Sequence
from pathlib import Path

PACKED = (".gz", ".zst")


def suffix(path: Path) -> str:
    """The ending that says what a file is, without that of its packing."""
    endings = [ending.lower() for ending in path.suffixes if ending.lower() not in PACKED]
    return endings[-1] if endings else ""


def opened(path: Path) -> io.BufferedIOBase:
    """The unpacked bytes of a file."""
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".zst":
        import pyarrow as pa

        # zstandard's own reader takes a file that is cut short for one that ends
        return io.BufferedReader(pa.input_stream(path.open("rb"), compression="zstd"))
    return path.open("rb")


def stamps(paths: Sequence[Path]) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of last change of files: while these are the same, they need not be read again."""
    found = ((path, path.stat()) for path in paths)
    return tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in found)
