"""A reader for the zip archives that torch.save writes, safe for untrusted files.

torch's and Python's own readers trust the archive: they decompress, allocate the size that a member claims, and
disagree on which of two members with the same name they return. This one accepts only what torch.save writes:
uncompressed members, one right after another from the first byte on, every name once, each with a checksum. A size is
compared with the file's before memory is allocated. Names are dictionary keys and never paths.

Format: PKWARE's APPNOTE.TXT, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.14 to 4.3.16 (end records).
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

# Each weight is a member, 12 per layer: enough for 680 layers. Reading millions would take memory and time.
MAX_MEMBERS = 8192
MAX_DIRECTORY_BYTES = 4 << 20

# The records of the format, each starting with a four-byte signature.
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_DIRECTORY_ENTRY = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_ZIP64_LOCATOR = struct.Struct("<4sLQL")
_ZIP64_END = struct.Struct("<4sQ2H2L4Q")

_HAS_DATA_DESCRIPTOR, _NAME_IS_UTF8 = 0x0008, 0x0800  # the two flags that torch.save sets
_SEE_ZIP64_16, _SEE_ZIP64_32 = 0xFFFF, 0xFFFFFFFF  # the value is too large for this field: see the zip64 one
_MAX_DATA_DESCRIPTOR_BYTES = 24  # after a member's content, its size and checksum again


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member's content is in the file."""

    offset: int
    size: int
    crc32: int


class SafeArchive:
    """The members of an archive by name, without the folder that torch.save adds: "data.pkl", "data/0"."""

    def __init__(self, file: BinaryIO) -> None:
        """Read the directory. Raises ValueError with the reason if `file` is not such an archive."""
        self._file = file
        self.n_bytes = file.seek(0, 2)
        start, size, n_members = self._find_directory()
        if n_members > MAX_MEMBERS or size > MAX_DIRECTORY_BYTES:
            raise ValueError(f"its archive has {n_members} members; at most {MAX_MEMBERS} are allowed")
        self.members = self._read_members(self._bytes_at(start, size), start)
        if len(self.members) != n_members:
            raise ValueError("the directory of its archive is damaged")

    def read(self, name: str, max_bytes: int) -> bytes:
        """A member's content. Raises ValueError if it is missing, longer than `max_bytes`, or its checksum is wrong."""
        member = self.members.get(name)
        if member is None:
            raise ValueError(f"its archive has no {name}")
        if member.size > max_bytes:
            raise ValueError(f"its member {name} has {member.size} bytes; at most {max_bytes} are allowed")
        content = self._bytes_at(member.offset, member.size)
        self._check(name, content)
        return content

    def read_into(self, name: str, target: memoryview) -> None:
        """Read a member's content into `target`, which has its size. Raises ValueError if the checksum is wrong."""
        assert target.nbytes == self.members[name].size
        self._file.seek(self.members[name].offset)
        if self._file.readinto(target) != target.nbytes:  # type: ignore[attr-defined]
            raise ValueError("it is truncated")
        self._check(name, target)

    def _check(self, name: str, content: bytes | memoryview) -> None:
        if zlib.crc32(content) != self.members[name].crc32:
            raise ValueError(f"the checksum of {name} is wrong")

    def _bytes_at(self, offset: int, size: int) -> bytes:
        if offset < 0 or size > self.n_bytes - offset:
            raise ValueError("it is truncated")
        self._file.seek(offset)
        content = self._file.read(size)
        if len(content) != size:
            raise ValueError("it is truncated")
        return content

    def _find_directory(self) -> tuple[int, int, int]:
        """Offset, size in bytes and number of entries of the directory, from the records at the very end of the file.

        Nothing may lie between the directory and these records, nor behind them.
        """
        end = self.n_bytes - _END.size
        signature, *disks, n_entries, n_members, size, start, comment_size = _END.unpack(self._bytes_at(end, _END.size))
        if signature != b"PK\5\6" or comment_size or any(disks) or n_entries != n_members:
            raise ValueError("the end of its archive is damaged")
        if end >= _ZIP64_LOCATOR.size + _ZIP64_END.size:
            locator = self._bytes_at(end - _ZIP64_LOCATOR.size, _ZIP64_LOCATOR.size)
            signature, disk, end64, n_disks = _ZIP64_LOCATOR.unpack(locator)
            if signature == b"PK\6\7":
                end -= _ZIP64_LOCATOR.size + _ZIP64_END.size
                signature, _, _, _, *disks, n_entries, n64, size64, start64 = _ZIP64_END.unpack(
                    self._bytes_at(end, _ZIP64_END.size)
                )
                agrees = n_members in (n64, _SEE_ZIP64_16) and size in (size64, _SEE_ZIP64_32)
                agrees = agrees and start in (start64, _SEE_ZIP64_32) and n_entries == n64
                if signature != b"PK\6\6" or end64 != end or disk or n_disks != 1 or any(disks) or not agrees:
                    raise ValueError("the end of its archive is damaged")
                n_members, size, start = n64, size64, start64
        if start + size != end:
            raise ValueError("the directory of its archive is in the wrong place")
        return start, size, n_members

    def _read_members(self, directory: bytes, directory_start: int) -> dict[str, Member]:
        """The members in the directory's order. Each must agree with its local header, and none may overlap another."""
        members: dict[str, Member] = {}
        folder, previous_end = None, 0
        for flags, raw_name, header, size, crc in _entries(directory):
            offset = self._content_offset(header, flags, raw_name)
            gap = header - previous_end
            if not 0 <= gap <= (_MAX_DATA_DESCRIPTOR_BYTES if members else 0) or offset + size > directory_start:
                raise ValueError("the members of its archive overlap or have gaps between them")
            root, _, name = raw_name.decode("utf-8").partition("/")
            folder = root if folder is None else folder
            if root != folder or name in members or not all(part.strip(".") for part in name.split("/")):
                raise ValueError("the names in its archive are not such as torch.save writes")
            members[name] = Member(offset, size, crc)
            previous_end = offset + size
        if directory_start - previous_end > _MAX_DATA_DESCRIPTOR_BYTES:
            raise ValueError("the members of its archive overlap or have gaps between them")
        return members

    def _content_offset(self, header: int, flags: int, name: bytes) -> int:
        """The offset of the content that follows the local header at offset `header`."""
        raw = self._bytes_at(header, _LOCAL_HEADER.size + len(name))
        signature, _, own_flags, method, *_, name_size, extra_size = _LOCAL_HEADER.unpack_from(raw)
        agrees = signature == b"PK\3\4" and own_flags == flags and not method
        if not agrees or name_size != len(name) or raw[_LOCAL_HEADER.size :] != name:
            raise ValueError("a member of its archive is not what the directory says")
        return header + _LOCAL_HEADER.size + name_size + extra_size


def _entries(directory: bytes) -> Iterator[tuple[int, bytes, int, int, int]]:
    """Flags, name, offset of the local header, size and checksum of each entry."""
    position = 0
    while position < len(directory):
        if len(directory) - position < _DIRECTORY_ENTRY.size:
            raise ValueError("the directory of its archive is damaged")
        entry = _DIRECTORY_ENTRY.unpack_from(directory, position)
        signature, _, _, flags, method, _, _, crc, stored_size, size = entry[:10]
        name_size, extra_size, comment_size, disk, _, _, header = entry[10:]
        position += _DIRECTORY_ENTRY.size
        name = directory[position : position + name_size]
        extra = directory[position + name_size : position + name_size + extra_size]
        position += name_size + extra_size
        if signature != b"PK\1\2" or position > len(directory):
            raise ValueError("the directory of its archive is damaged")
        if method or stored_size != size or comment_size or disk or flags & ~(_HAS_DATA_DESCRIPTOR | _NAME_IS_UTF8):
            raise ValueError("its archive is compressed, encrypted, or otherwise not such as torch.save writes")
        zip64_values = _zip64_values(extra)
        if size == _SEE_ZIP64_32:
            size, stored_size = next(zip64_values, size), next(zip64_values, size)
        if header == _SEE_ZIP64_32:
            header = next(zip64_values, header)
        if size != stored_size:
            raise ValueError("its archive is compressed, encrypted, or otherwise not such as torch.save writes")
        yield flags, name, header, size, crc


def _zip64_values(extra: bytes) -> Iterator[int]:
    """The values in an entry's zip64 field: those of size, stored size and header offset that exceed 32 bits."""
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            values = extra[position + 4 : position + 4 + size // 8 * 8]
            yield from (value for (value,) in struct.iter_unpack("<Q", values))
        position += 4 + size
