"""OLE compound files: the small file system inside Outlook messages and office files before 2007.

    header (512 bytes) ─▶ FAT: for each sector the next one of its stream
                       ─▶ directory: 128 bytes an entry: name, kind, left/right/child, first sector, size
    streams under 4,096 bytes lie in 64-byte mini sectors inside the root entry's stream, with a FAT of their own

Source: [MS-CFB], Microsoft's description of the format. Every chain is followed at most once around the file, so that a
damaged or hostile file ends in an error and not in a loop.
"""

from __future__ import annotations

import struct
from pathlib import Path

from luthier.core.errors import DocumentError

__all__ = ["OleFile"]

END = 0xFFFFFFFA  # this and above: free, end of chain, and the like
NONE = 0xFFFFFFFF


class OleFile:
    """Streams of an OLE file by their path (`__attach_version1.0_#00000000/__substg1.0_3701000D`)."""

    def __init__(self, file: Path, data: bytes) -> None:
        self.file, self.data = file, data
        try:
            self._open()
        except (struct.error, IndexError, ValueError) as error:
            raise DocumentError("unreadable", f"{file}: a damaged OLE file: {error}") from error

    def names(self) -> list[str]:
        return list(self.entries)

    def read(self, path: str) -> bytes:
        """The content of a stream; empty if there is none of that path."""
        first, size = self.entries.get(path, (NONE, 0))
        if size == 0:
            return b""
        if size < self.cutoff:
            return b"".join(self.mini[n * 64 : n * 64 + 64] for n in _chain(self.mini_fat, first))[:size]
        return b"".join(map(self._sector, _chain(self.fat, first)))[:size]

    def _sector(self, number: int) -> bytes:
        start = (number + 1) * self.size
        return self.data[start : start + self.size]

    def _open(self) -> None:
        data = self.data
        self.size = 1 << min(16, struct.unpack_from("<H", data, 30)[0])
        fats, first_directory, _, self.cutoff, first_mini, _, first_difat, _ = struct.unpack_from("<8I", data, 44)
        difat = list(struct.unpack_from("<109I", data, 76))
        seen = 0
        while first_difat < END and seen * self.size < len(data):
            *more, first_difat = _integers(self._sector(first_difat))
            difat += more
            seen += 1
        self.fat = [n for sector in difat[:fats] if sector < END for n in _integers(self._sector(sector))]
        self.mini_fat = [n for sector in _chain(self.fat, first_mini) for n in _integers(self._sector(sector))]
        directory = b"".join(map(self._sector, _chain(self.fat, first_directory)))
        self.mini, self.entries = b"", {}
        self._list(directory)

    def _list(self, directory: bytes) -> None:
        raw = [directory[n : n + 128] for n in range(0, len(directory) - 127, 128)]
        if not raw:
            raise ValueError("no directory")
        first, size = struct.unpack_from("<II", raw[0], 116)
        self.mini = b"".join(map(self._sector, _chain(self.fat, first)))[:size]
        todo, seen = [(struct.unpack_from("<I", raw[0], 76)[0], "")], {0}
        while todo:
            number, folder = todo.pop()
            if number >= len(raw) or number in seen:
                continue
            seen.add(number)
            entry = raw[number]
            length, kind = struct.unpack_from("<HB", entry, 64)
            name = folder + entry[: max(0, min(64, length) - 2)].decode("utf-16-le", "replace")
            left, right, child = struct.unpack_from("<3I", entry, 68)
            self.entries[name] = struct.unpack_from("<II", entry, 116) if kind == 2 else (NONE, 0)
            todo += [(left, folder), (right, folder), (child, name + "/")]


def _integers(sector: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(sector) // 4}I", sector[: len(sector) // 4 * 4])


def _chain(fat: list[int], sector: int) -> list[int]:
    """The sectors of a stream from its first on."""
    chain: list[int] = []
    while sector < END:
        if sector >= len(fat) or len(chain) > len(fat):
            raise ValueError("a chain of sectors leads nowhere")
        chain.append(sector)
        sector = fat[sector]
    return chain
