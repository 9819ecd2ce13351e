"""Archives that lie about what they hold."""

import struct
import zipfile

import torch

from tests.model_io.untrusted.honest import archive, members, of_bytes, of_members, parts

END = -22  # the record at the end; no comment follows


def entry(data, name):
    """Where the directory's entry of a member begins."""
    return data.rindex(f"archive/{name}".encode()) - 46


def lie(name, *changes):
    """The directory tells something else of `name`: (place in its entry, struct format, value), ..."""

    def change(data):
        for place, form, value in changes:
            struct.pack_into("<" + form, data, entry(data, name) + place, value)

    return of_bytes(change)


def at_end(*changes):
    """The record at the end tells something else."""

    def change(data):
        for place, form, value in changes:
            struct.pack_into("<" + form, data, len(data) + END + place, value)

    return of_bytes(change)


def with_end64(data, n_members, size, start, place=None):
    """Insert the two zip64 records."""
    end = bytes(data[END:])
    del data[END:]
    place = len(data) if place is None else place
    data += struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, n_members, n_members, size, start)
    data += struct.pack("<4sLQL", b"PK\6\7", 0, place, 1) + end
    struct.pack_into("<2H2L", data, len(data) + END + 8, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)


def many_members(n_members, told):
    """A directory of many entries, of which the end tells so many."""
    one = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0) + b"a/b"

    def write(path):
        data = bytearray(one * n_members)
        data += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0)
        with_end64(data, told, len(one) * n_members, 0)
        path.write_bytes(data)

    return write


def overlapping(data):
    """data/1 begins inside of data/0, whose bytes were made to look like its header."""
    header = struct.unpack_from("<L", data, entry(data, "data/1") + 42)[0]
    whole_header = data[header : header + 30 + len("archive/data/1")]
    inside = struct.unpack_from("<L", data, entry(data, "data/0") + 42)[0] + 30 + len("archive/data/0")
    data[inside : inside + len(whole_header)] = whole_header
    struct.pack_into("<L", data, entry(data, "data/1") + 42, inside)


def with_gap(data):
    """Something hides between the last member and the directory."""
    start = struct.unpack_from("<L", data, len(data) + END + 16)[0]
    data[start:start] = b"hidden" * 10
    struct.pack_into("<L", data, len(data) + END + 16, start + 60)


def renamed_inside(data):
    place = data.index(b"archive/data/1")
    data[place : place + 14] = b"archive/data/2"


def damaged(content):
    return of_bytes(lambda data: data.replace(content, bytes([content[0] ^ 1]) + content[1:]))


def polyglot(data):
    """A shell script before the archive, every place moved along."""
    script = b"#!/bin/sh\ntouch canary\nexit\n"
    n_members, start = struct.unpack_from("<H", data, len(data) + END + 10)[0], data.index(b"PK\1\2")
    place = start
    for _ in range(n_members):
        struct.pack_into("<L", data, place + 42, struct.unpack_from("<L", data, place + 42)[0] + len(script))
        place += 46 + struct.unpack_from("<H", data, place + 28)[0]
    struct.pack_into("<L", data, len(data) + END + 16, start + len(script))
    return script + data


def script_module(path):
    with_warnings = torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1, 1), check_trace=False)
    torch.jit.save(with_warnings, path)


ARCHIVE = {
    "deflated": lambda path: path.write_bytes(archive(members(parts()), zipfile.ZIP_DEFLATED)),
    "bzip2": lambda path: path.write_bytes(archive(members(parts()), zipfile.ZIP_BZIP2)),
    "lzma": lambda path: path.write_bytes(archive(members(parts()), zipfile.ZIP_LZMA)),
    "a thousandfold when inflated": lambda path: path.write_bytes(
        archive(members(parts()) | {"data/0": bytes(150_000_000)}, zipfile.ZIP_DEFLATED)
    ),
    "an unknown compression": lie("data/0", (10, "H", 99)),
    "a million members": many_members(1_000_000, told=1_000_000),
    "200,000 members instead of twenty": many_members(200_000, told=20),
    "20,000 members instead of twenty": many_members(20_000, told=20),
    "description twice": of_members(lambda honest: [*honest.items(), ("data.pkl", honest["data.pkl"])]),
    "weight twice": of_members(lambda honest: [*honest.items(), ("data/0", honest["data/1"])]),
    "absolute name": of_members(lambda honest: honest | {"/etc/passwd": b"root"}),
    "name above": of_members(lambda honest: honest | {"../../canary": b"x"}),
    "no name": of_members(lambda honest: honest | {"": b"x"}),
    "two folders": lambda path: path.write_bytes(
        archive([*((f"archive/{name}", data) for name, data in members(parts()).items()), ("b/c", b"")], root="")
    ),
    "name of control characters": lie("version", (46, "7s", b"\x1b]0;a\x07\n")),
    "name that is not UTF-8": lie("version", (46, "7s", b"\xff\xfe\xfd")),
    "encrypted": lie("data/0", (8, "H", 1)),
    "strongly encrypted": lie("data.pkl", (8, "H", 0x41)),
    "sizes beyond the file": lie("data/0", (20, "L", 0xFFFFFFF0), (24, "L", 0xFFFFFFF0)),
    "sizes that differ": lie("data/0", (24, "L", 0x7FFFFFFF)),
    "sizes of 64 bits that are not there": lie("data/0", (20, "L", 0xFFFFFFFF), (24, "L", 0xFFFFFFFF)),
    "a shorter weight": lie("data/0", (20, "L", 100), (24, "L", 100)),
    "a comment on a member": lie("data/0", (32, "H", 30)),
    "a member on another disk": lie("data/0", (34, "H", 7)),
    "a member elsewhere": lie("data/1", (42, "L", 0)),
    "a member behind the end": lie("data/1", (42, "L", 0xFFFFFFF0)),
    "overlapping members": of_bytes(overlapping),
    "a gap": of_bytes(with_gap),
    "another name inside": of_bytes(renamed_inside),
    "a name beyond the directory": lie("version", (28, "H", 60_000)),
    "a comment of 64 KB": of_bytes(lambda data: data[:-2] + b"\xff\xff" + b"PK\5\6" * 16384),
    "a script before": of_bytes(polyglot),
    "bytes behind": of_bytes(lambda data: data + b"PK\5\6" + bytes(17)),
    "several disks": at_end((4, "H", 1)),
    "no members": at_end((8, "H", 0), (10, "H", 0)),
    "a directory beyond the file": at_end((12, "L", 0x7FFFFFFF)),
    "a directory of 4 GB": at_end((12, "L", 0xFFFFFFFF), (16, "L", 0)),
    "a zip64 end that lies elsewhere": of_bytes(lambda data: with_end64(data, 20, 1000, 0, place=0)),
    "a zip64 directory of 2^63 bytes": of_bytes(lambda data: with_end64(data, 2**63, 2**63, 2**62)),
    "a changed weight": damaged(parts()["weights"]["token_embedding.weight"].numpy().tobytes()[:64]),
    "a changed description": damaged(b"wikitext"),
    "no description": of_members(lambda honest: {k: v for k, v in honest.items() if k != "data.pkl"}),
    "no byte order": of_members(lambda honest: {k: v for k, v in honest.items() if k != "byteorder"}),
    "another byte order": of_members(lambda honest: honest | {"byteorder": b"big"}),
    "10 MB in a small member": of_members(lambda honest: honest | {"version": bytes(10_000_000)}),
    "a tensor that nothing uses": of_members(lambda honest: honest | {"data/99": bytes(1_000_000)}),
    "a TorchScript program": script_module,
    "torch's format before 1.6": lambda path: torch.save(parts(), path, _use_new_zipfile_serialization=False),
}
