"""A folder of checkpoints: each complete and verified, or absent. Knows files and bytes, nothing of training or torch.

A checkpoint is a folder such as `step-00004800` with some files and, written last, a `manifest.json` that holds every
file's size and sha256. It is written under a temporary name, flushed to the disk, renamed, and read back before an
older one is deleted. A damaged checkpoint is moved to `set-aside/`, never deleted silently. The order of these steps
follows Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014). A failed fsync is not repeated on the same
file (Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020).
"""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tiny_gpt.config.run import CHECKPOINTS_FOLDER
from tiny_gpt.errors import BadInputError
from tiny_gpt.files import Writable, sha256_of, sha256_of_json, sync_folder, sync_to_disk

CHECKPOINT_FORMAT = "tiny_gpt checkpoint"
FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
SET_ASIDE_FOLDER = "set-aside"
STATE_FILE = "state.json"
MAX_MANIFEST_BYTES = 1 << 20
# The state names every source of the text, twice; a command line may be 2 MB long.
MAX_STATE_BYTES = 32 << 20
_NAME = re.compile(r"step-(\d{8,15})")
_NAME_OF_FILE = re.compile(r"[a-z][a-z_.]{0,40}")

N_NEWEST_KEPT = 3
"""At least two: if the newest is damaged, there must be another."""
MILESTONES = (0.25, 0.5, 0.75)
"""Fractions of the run; the first checkpoint after each is never pruned."""


class DamagedError(Exception):
    """A checkpoint does not match its manifest; the message is the reason."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk; `about` is what its writer says of it."""

    path: Path
    step: int
    about: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run, in `run_folder`/checkpoints."""

    def __init__(self, run_folder: Path) -> None:
        self.folder = run_folder / CHECKPOINTS_FOLDER

    def move_to(self, run_folder: Path) -> None:
        """The run's folder, checkpoints included, is now `run_folder`."""
        self.folder = run_folder / CHECKPOINTS_FOLDER

    def steps(self) -> list[int]:
        """The steps of all checkpoints, the newest first, by their names alone."""
        return sorted((step for step, _ in self._named()), reverse=True)

    def newest(
        self, before: float = math.inf, is_wanted: Callable[[dict[str, Any]], bool] = lambda about: True
    ) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint before step `before` that verifies, and a line for each damaged one.

        Damaged ones are set aside. Those whose `about` fails `is_wanted` are skipped.
        """
        notes: list[str] = []
        for step in self.steps():
            if step >= before:
                continue
            try:
                if is_wanted(self.about(step)):
                    return self.verified(step), notes
            except DamagedError as damage:
                notes.append(f"{self._path(step)} is damaged ({damage}); {self.set_aside(step)}")
        return None, notes

    def verified(self, step: int) -> Checkpoint:
        """The checkpoint of `step`, its manifest and all its files checked; raises DamagedError."""
        path = self._path(step)
        try:
            manifest = read_manifest(path)
            for name, entry in manifest["files"].items():
                _check_file(path / name, entry["n_bytes"], entry["sha256"])
        except OSError as error:
            raise DamagedError(f"{error.strerror or error}: {error.filename}") from error
        return Checkpoint(path, step, manifest["about"])

    def about(self, step: int) -> dict[str, Any]:
        """What the writer says of a checkpoint; its files are not checked. Raises DamagedError."""
        try:
            about: dict[str, Any] = read_manifest(self._path(step))["about"]
        except OSError as error:
            raise DamagedError(str(error)) from error
        return about

    def write(self, step: int, files: Mapping[str, Callable[[Writable], object]], about: dict[str, Any]) -> Checkpoint:
        """Write the checkpoint of `step` and read it back; each function in `files` writes a file's content to a sink.

        Raises OSError or DamagedError if that fails; an older checkpoint of the same step is then unchanged.
        """
        partial = self.folder / f".{self._path(step).name}.{os.getpid()}.part"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            self.folder.mkdir(exist_ok=True)  # but not the run's folder, which may have been moved meanwhile
            partial.mkdir()
            entries = {name: _write_file(partial / name, content) for name, content in files.items()}
            manifest = {"format": CHECKPOINT_FORMAT, "format_version": FORMAT_VERSION, "files": entries, "about": about}
            manifest["sha256"] = sha256_of_json(manifest)
            text = json.dumps(manifest, indent=1).encode()
            _write_file(partial / MANIFEST_FILE, lambda sink: sink.write(text))
            sync_folder(partial)
            self._rename(partial, self._path(step))
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return self.verified(step)

    def _rename(self, partial: Path, path: Path) -> None:
        """Replace an older checkpoint of the same step, as there is after a rollback."""
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.rename(path, old)
        try:
            os.rename(partial, path)
        except OSError:
            with contextlib.suppress(OSError):  # there may be none
                os.rename(old, path)
            raise
        sync_folder(self.folder)
        shutil.rmtree(old, ignore_errors=True)

    def prune(self) -> None:
        """Delete all but the newest few, the best and the milestones. Call it after a write."""
        steps = self.steps()
        kept = {*steps[:N_NEWEST_KEPT], *self._worth_keeping(steps)}
        for step in steps:
            if step not in kept:
                self._delete(self._path(step))

    def forget_after(self, step: int) -> None:
        """Delete all checkpoints later than `step`: the run continues differently from there."""
        for later in self.steps():
            if later > step:
                self._delete(self._path(later))

    def make_room(self) -> bool:
        """Delete the oldest folder from a full disk; False if only the newest checkpoint is left."""
        set_aside = sorted((self.folder / SET_ASIDE_FOLDER).glob("*"))
        older = [self._path(step) for step in reversed(self.steps()[1:])]
        return any(self._delete(path) for path in [*set_aside, *older])

    def set_aside(self, step: int) -> str:
        """Move a checkpoint to set-aside/; says where it is now."""
        path = self._path(step)
        target = self.folder / SET_ASIDE_FOLDER / path.name
        while target.exists() or target.is_symlink():
            target = target.with_name(target.name + "_")
        try:
            target.parent.mkdir(exist_ok=True)
            os.rename(path, target)
        except OSError as error:
            return f"it could not be moved ({error.strerror})"
        return f"moved to {target}"

    def remove_partial(self) -> None:
        """Delete what a killed writer left. Only the process that trains this run may call it."""
        for leftover in [*self.folder.glob(".step-*.part"), *self.folder.glob(".step-*.old")]:
            shutil.rmtree(leftover, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()  # empty if the run was killed before its first checkpoint

    def _worth_keeping(self, steps: Iterable[int]) -> set[int]:
        """The best by val_loss, the first after each milestone, and the last before the learning rate decayed."""
        known: dict[int, dict[str, Any]] = {}
        for step in sorted(steps):
            try:
                known[step] = self.about(step)
            except DamagedError:
                continue
        losses = {step: about["val_loss"] for step, about in known.items() if about.get("val_loss") is not None}
        kept = {min(losses, key=lambda step: losses[step])} if losses else set()
        kept |= set([step for step, about in known.items() if is_before_cooldown(about)][-1:])
        for fraction in MILESTONES:
            after = [step for step, about in known.items() if step >= fraction * about.get("total_steps", math.inf)]
            kept |= set(after[:1])
        return kept

    def _named(self) -> Iterator[tuple[int, Path]]:
        try:
            entries = list(os.scandir(self.folder))
        except OSError:
            return
        for entry in entries:
            match = _NAME.fullmatch(entry.name)
            if match and entry.is_dir(follow_symlinks=False):
                yield int(match.group(1)), Path(entry.path)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08}"

    @staticmethod
    def _delete(path: Path) -> bool:
        """Delete `path`, renamed first so that a half-deleted checkpoint does not look like one. Returns success."""
        old = path.with_name(f".{path.name}.old")
        with contextlib.suppress(OSError):
            shutil.rmtree(old, ignore_errors=True)
            os.rename(path, old)
            shutil.rmtree(old)
            return True
        return False


def is_before_cooldown(about: dict[str, Any]) -> bool:
    """Whether a checkpoint is from before the learning rate decayed, so that the run can be extended from it without a
    jump of the loss."""
    return about.get("is_cooling") is False


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the checkpoint at `path`; raises DamagedError, OSError, or BadInputError for a newer format."""
    try:
        manifest = json.loads(read_bounded(path / MANIFEST_FILE, MAX_MANIFEST_BYTES))
        if manifest.pop("sha256") != sha256_of_json(manifest):
            raise DamagedError("its manifest does not match its checksum")
        if manifest["format"] != CHECKPOINT_FORMAT or type(manifest["format_version"]) is not int:
            raise DamagedError("it is not a checkpoint of tiny_gpt")
        if manifest["format_version"] != FORMAT_VERSION:
            raise BadInputError(
                f"{path} has format version {manifest['format_version']}, this tiny_gpt reads {FORMAT_VERSION}; "
                "use the tiny_gpt that wrote it, or a newer one",
                code="checkpoint-format-too-new",
            )
        entries = manifest["files"].items()
        if not all(_NAME_OF_FILE.fullmatch(name) and _is_entry(entry) for name, entry in entries):
            raise DamagedError("its manifest has invalid file entries")
        if not isinstance(manifest["about"], dict):
            raise DamagedError("its manifest does not describe the run")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError("its manifest cannot be read") from error
    return manifest


def _is_entry(entry: Any) -> bool:
    return entry.keys() == {"n_bytes", "sha256"} and type(entry["n_bytes"]) is int and type(entry["sha256"]) is str


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file of at most `max_bytes`; raises DamagedError or OSError."""
    if path.is_symlink() or not path.is_file():
        raise DamagedError(f"{path.name} is missing or not a regular file")
    with open(path, "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise DamagedError(f"{path.name} is larger than {max_bytes:,} bytes")
    return content


def _check_file(path: Path, n_bytes: int, sha256: str) -> None:
    if path.is_symlink() or not path.is_file():
        raise DamagedError(f"{path.name} is missing")
    if path.stat().st_size != n_bytes:
        raise DamagedError(f"{path.name} has {path.stat().st_size:,} bytes instead of {n_bytes:,}")
    if sha256_of(path) != sha256:
        raise DamagedError(f"the bytes of {path.name} have changed")


class _HashingSink:
    """Writes to a file and hashes what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.n_bytes = file, hashlib.sha256(), 0

    def write(self, data: Any, /) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.n_bytes += len(memoryview(data).cast("B"))


def _write_file(path: Path, content: Callable[[Writable], object]) -> dict[str, Any]:
    with open(path, "wb") as file:
        sink = _HashingSink(file)
        content(sink)
        file.flush()
        sync_to_disk(file.fileno())
    return {"n_bytes": sink.n_bytes, "sha256": sink.digest.hexdigest()}
