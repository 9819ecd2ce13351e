"""What is no file, or hardly one."""

import os
import pickle
import struct
import zlib

from tests.model_io.untrusted.honest import CANARY, Calling, control


def empty_of(n_bytes, end=b""):
    """A file of zeros that takes no room on the disk."""

    def write(path):
        with open(path, "wb") as file:
            file.truncate(n_bytes)
            file.seek(n_bytes - len(end))
            file.write(end)

    return write


def unreadable(path):
    path.write_bytes(control())
    path.chmod(0)


PATH = {
    "nothing": lambda path: None,
    "empty": lambda path: path.write_bytes(b""),
    "one byte": lambda path: path.write_bytes(b"P"),
    "the end of an archive alone": lambda path: path.write_bytes(b"PK\5\6" + bytes(18)),
    "text": lambda path: path.write_text("The cat sat on the mat.\n" * 1000),
    "random bytes": lambda path: path.write_bytes(zlib.compress(bytes(range(256)) * 100) * 1000),
    "a plain pickle": lambda path: path.write_bytes(pickle.dumps(Calling(os.mkdir, CANARY))),
    "a folder": lambda path: path.mkdir(),
    "10 GB of zeros": empty_of(10 << 30),
    "10 GB of zeros with an end": empty_of(10 << 30, b"PK\5\6" + bytes(18)),
    "10 GB of zeros with a directory of 4 GB": empty_of(
        10 << 30, struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, 0xFFFFFFFE, 0, 0)
    ),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a pipe": lambda path: os.mkfifo(path),
    "a file that may not be read": unreadable,
}
if os.name == "nt":
    for name in ("a link to nothing", "a link to itself", "a link to a device", "a pipe"):
        del PATH[name]
if os.name == "nt" or os.geteuid() == 0:  # who may read everything
    del PATH["a file that may not be read"]
