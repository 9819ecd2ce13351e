"""Reads the zip archives that torch.save writes, believing nothing that they say of themselves.

torch's and Python's own readers are made for archives of friends: they inflate, take a member's size at its word, and
do not agree on which of two members of one name is meant. Here is only what torch.save writes: members stored as they
are, one right after another from the first byte on, each name once, each with a checksum. Sizes are compared with the
file's before memory is taken. Names are keys to look up, never paths.

Format: PKWARE's APPNOTE.TXT, sections 4.3.7 (a member's header), 4.3.12 (the directory) and 4.3.14-16 (its end).
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

# Each weight is a member, 12 in a layer: enough for 680 layers. A directory of millions would take memory and time.
MAX_MEMBERS = 8192
MAX_DIRECTORY_BYTES = 4 << 20

_HEADER = struct.Struct("<4s5H3L2H")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64_PLACE = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")

_SIZE_AFTERWARDS, _NAME_IS_UTF8 = 0x0008, 0x0800  # the two flags that torch.save sets
_IN_EXTRA_16, _IN_EXTRA_32 = 0xFFFF, 0xFFFFFFFF  # "too large for this field, look into the zip64 one"
_MAX_SIZE_AFTERWARDS = 24  # bytes of the record behind a member that repeats its size


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member's content lies in the file."""

    offset: int
    size: int
    crc: int


class StrictArchive:
    """The members of an archive by name, without the folder that torch.save puts around them: "data.pkl", "data/0"."""

    def __init__(self, file: BinaryIO) -> None:
        """Raises ValueError saying why when `file` is not such an archive. Reads the directory, no content."""
        self._file = file
        self.n_bytes = file.seek(0, 2)
        start, size, n_members = self._end()
        if n_members > MAX_MEMBERS or size > MAX_DIRECTORY_BYTES:
            raise ValueError(f"its archive has {n_members} members; {MAX_MEMBERS} is the most")
        self.members = self._members(self._bytes_at(start, size), start)
        if len(self.members) != n_members:
            raise ValueError("the directory of its archive is damaged")

    def read(self, name: str, max_bytes: int) -> bytes:
        """A member's content; raises ValueError where it is longer than `max_bytes` or its checksum does not fit."""
        member = self.members.get(name)
        if member is None:
            raise ValueError(f"its archive has no {name}")
        if member.size > max_bytes:
            raise ValueError(f"its part {name} has {member.size} bytes; {max_bytes} is the most")
        content = self._bytes_at(member.offset, member.size)
        self._check(name, content)
        return content

    def read_into(self, name: str, target: memoryview) -> None:
        """Fill `target`, of the member's size, with its content; raises ValueError where its checksum does not fit."""
        assert target.nbytes == self.members[name].size
        self._file.seek(self.members[name].offset)
        if self._file.readinto(target) != target.nbytes:  # type: ignore[attr-defined]
            raise ValueError("it is cut short")
        self._check(name, target)

    def _check(self, name: str, content: bytes | memoryview) -> None:
        if zlib.crc32(content) != self.members[name].crc:
            raise ValueError(f"the checksum of {name} does not fit")

    def _bytes_at(self, offset: int, size: int) -> bytes:
        if offset < 0 or size > self.n_bytes - offset:
            raise ValueError("it is cut short")
        self._file.seek(offset)
        content = self._file.read(size)
        if len(content) != size:
            raise ValueError("it is cut short")
        return content

    def _end(self) -> tuple[int, int, int]:
        """Where the directory starts, its bytes and its entries. It reaches to the records at the file's very end."""
        place = self.n_bytes - _END.size
        signature, *disks, n_entries, n_members, size, start, comment_size = _END.unpack(
            self._bytes_at(place, _END.size)
        )
        if signature != b"PK\5\6" or comment_size or any(disks) or n_entries != n_members:
            raise ValueError("it does not end as an archive does")
        if place >= _END64_PLACE.size + _END64.size:
            locator = self._bytes_at(place - _END64_PLACE.size, _END64_PLACE.size)
            signature, disk, place64, n_disks = _END64_PLACE.unpack(locator)
            if signature == b"PK\6\7":
                place -= _END64_PLACE.size + _END64.size
                signature, _, _, _, *disks, n_entries, n64, size64, start64 = _END64.unpack(
                    self._bytes_at(place, _END64.size)
                )
                fits = n_members in (n64, _IN_EXTRA_16) and size in (size64, _IN_EXTRA_32)
                fits = fits and start in (start64, _IN_EXTRA_32) and n_entries == n64
                if signature != b"PK\6\6" or place64 != place or disk or n_disks != 1 or any(disks) or not fits:
                    raise ValueError("it does not end as an archive does")
                n_members, size, start = n64, size64, start64
        if start + size != place:
            raise ValueError("the directory of its archive is not where it should be")
        return start, size, n_members

    def _members(self, directory: bytes, directory_start: int) -> dict[str, Member]:
        """The members that the directory names, each compared with its own header, none over another."""
        members: dict[str, Member] = {}
        folder, previous_end = None, 0
        for flags, raw_name, header, size, crc in _entries(directory):
            offset = self._content_offset(header, flags, raw_name)
            gap = header - previous_end
            if not 0 <= gap <= (_MAX_SIZE_AFTERWARDS if members else 0) or offset + size > directory_start:
                raise ValueError("the members of its archive do not lie one after another")
            root, _, name = raw_name.decode("utf-8").partition("/")
            folder = root if folder is None else folder
            if root != folder or name in members or not all(part.strip(".") for part in name.split("/")):
                raise ValueError("the names in its archive are not as torch.save writes them")
            members[name] = Member(offset, size, crc)
            previous_end = offset + size
        if directory_start - previous_end > _MAX_SIZE_AFTERWARDS:
            raise ValueError("the members of its archive do not lie one after another")
        return members

    def _content_offset(self, header: int, flags: int, name: bytes) -> int:
        """Where the content behind the header at `header` begins."""
        raw = self._bytes_at(header, _HEADER.size + len(name))
        signature, _, own_flags, method, *_, name_size, extra_size = _HEADER.unpack_from(raw)
        fits = signature == b"PK\3\4" and own_flags == flags and not method
        if not fits or name_size != len(name) or raw[_HEADER.size :] != name:
            raise ValueError("a member of its archive is not the one that the directory names")
        return header + _HEADER.size + name_size + extra_size


def _entries(directory: bytes) -> Iterator[tuple[int, bytes, int, int, int]]:
    """Each entry's flags, name, place of its header, size and checksum."""
    place = 0
    while place < len(directory):
        if len(directory) - place < _ENTRY.size:
            raise ValueError("the directory of its archive is damaged")
        entry = _ENTRY.unpack_from(directory, place)
        signature, _, _, flags, method, _, _, crc, stored_size, size = entry[:10]
        name_size, extra_size, comment_size, disk, _, _, header = entry[10:]
        place += _ENTRY.size
        name = directory[place : place + name_size]
        extra = directory[place + name_size : place + name_size + extra_size]
        place += name_size + extra_size
        if signature != b"PK\1\2" or place > len(directory):
            raise ValueError("the directory of its archive is damaged")
        if method or stored_size != size or comment_size or disk or flags & ~(_SIZE_AFTERWARDS | _NAME_IS_UTF8):
            raise ValueError("its archive is compressed, encrypted or otherwise not as torch.save writes it")
        large = _large_values(extra)
        if size == _IN_EXTRA_32:
            size, stored_size = next(large, size), next(large, size)
        if header == _IN_EXTRA_32:
            header = next(large, header)
        if size != stored_size:
            raise ValueError("its archive is compressed, encrypted or otherwise not as torch.save writes it")
        yield flags, name, header, size, crc


def _large_values(extra: bytes) -> Iterator[int]:
    """What an entry's zip64 field holds: whichever of size, stored size and place exceed 32 bits, in this order."""
    place = 0
    while place + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, place)
        if kind == 1:
            yield from (value for (value,) in struct.iter_unpack("<Q", extra[place + 4 : place + 4 + size // 8 * 8]))
        place += 4 + size
