"""Files of text, packed or not: their bytes while reading, and the characters that these stand for.

.gz .zst    unpacked while reading; a file that was cut off, or is empty, is an error and not a short text
UTF-8       without its mark, line ends as \\n; anything else is an error that names the byte
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Any

import zstandard

from luthier.core.errors import InputError

__all__ = ["DAMAGED", "PACKED", "decoded", "open_file"]

PACKED = {".gz": ("gzip", b"\x1f\x8b"), ".zst": ("zstd", b"\x28\xb5\x2f\xfd")}  # by ending: name, first bytes
DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError)  # what reading such a file may raise


def open_file(path: Path) -> Any:
    """A file for reading bytes, unpacked by its ending. Raises EOFError for an empty packed one."""
    if path.suffix.lower() in PACKED and path.stat().st_size == 0:
        raise EOFError("it is empty")  # as a whole file never is; gzip's own reader would say nothing
    if path.suffix.lower() == ".zst":
        return io.BufferedReader(_Zstd(path))
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


class _Zstd(io.RawIOBase):
    """A zstd file, unpacked while reading, of one frame or several. Unlike the package's own reader it notices when the
    end was cut off."""

    def __init__(self, path: Path) -> None:
        self.file, self.held, self.frame = path.open("rb"), b"", None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.held:
            packed = self.file.read(1 << 17)
            if not packed:
                if self.frame is not None:
                    raise EOFError("the file ends in the middle")
                return 0
            self.held = self._unpacked(packed)
        count = min(len(buffer), len(self.held))
        buffer[:count], self.held = self.held[:count], self.held[count:]
        return count

    def _unpacked(self, packed: bytes) -> bytes:
        out = []
        while packed:
            if self.frame is None:
                self.frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            out.append(self.frame.decompress(packed))
            packed = self.frame.unused_data if self.frame.eof else b""
            if self.frame.eof:
                self.frame = None
        return b"".join(out)

    def close(self) -> None:
        self.file.close()
        super().close()


def decoded(data: bytes, path: Path, offset: int = 0) -> str:
    """The text of bytes that begin `offset` bytes after the beginning of the file. Raises InputError."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = f"{path}: not UTF-8 at byte {offset + error.start:,} (0x{data[error.start]:02x})"
        for ending, (kind, beginning) in PACKED.items():
            if offset == 0 and data.startswith(beginning):
                name = f", or name it {path.name}{ending}" if path.suffix.lower() not in PACKED else " once more"
                raise InputError(f"{wrong}: packed by {kind}\nUnpack it{name}.") from error
        raise InputError(f"{wrong}\nSave it as UTF-8, or let `luthier collect` find out its encoding.") from error
    if data.count(0) * 3 > max(len(data), 16):  # UTF-16 without its mark, or a file that a crash left full of zeros
        raise InputError(
            f"{path}: not text in UTF-8: of {len(data):,} bytes from byte {offset:,} on {data.count(0):,} are zero\n"
            "Save it as UTF-8, or let `luthier collect` find out its encoding."
        )
    return (text.removeprefix("\ufeff") if offset == 0 else text).replace("\r\n", "\n")
