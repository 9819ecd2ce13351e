"""What a run does when its folder is moved, deleted or replaced while it trains: there is never a second writer.

- Moved: the present state is saved in the new place, and training continues from there in a new process.
- Deleted: the folder is made and locked again, and everything is saved again.
- Replaced by another folder: if that is the run's own, as on a disk that was plugged in again, it is locked and used;
  otherwise nothing more is written.
- Out of reach: training continues, and saving is retried (saver.py).
"""

from tiny_gpt.config import CONFIG_FILE
from tiny_gpt.errors import BadInputError, OutOfResourcesError, RestartRequestedError, TinyGPTError
from tiny_gpt.files import quoted
from tiny_gpt.host.heartbeat import is_watched
from tiny_gpt.run.output_folder import LockedFolder, write_json_atomically
from tiny_gpt.run.prepared_run import PreparedRun


class FolderGuard:
    """Watches the `folder` of the `prepared` run."""

    def __init__(self, folder: LockedFolder, prepared: PreparedRun) -> None:
        self._folder, self._config, self._trainer = folder, prepared.config, prepared.trainer
        self._has_warned, self._is_acting = False, False
        prepared.trainer.checkpoints.saver.check_folder = self.check

    def check(self) -> None:
        """Call it before anything is written. Raises RestartRequestedError if training is to go on in another place, or
        BadInputError without a watchdog; UsageError if another process has begun to train in this place."""
        state = self._folder.held.state()
        if state == "in place" or self._is_acting:
            return
        self._is_acting = True  # what follows saves too
        try:
            match state:
                case "deleted":
                    self._make_again()
                case "moved":
                    self._follow()
                case "replaced":
                    self._take_over_or_leave()
        finally:
            self._is_acting = False

    def _make_again(self) -> None:
        try:
            self._folder.take_again()
            write_json_atomically(self._folder.path / CONFIG_FILE, self._config.to_flat())
        except OutOfResourcesError as failure:
            if not self._has_warned:
                self._has_warned = True
                self._warn(f"the run's folder was deleted and cannot be made again ({failure}); training continues")
            return
        self._has_warned = False
        self._warn("the run's folder was deleted; it is made again, and everything is saved again from here on")
        self._trainer.checkpoints.save_anew()

    def _follow(self) -> None:
        place = self._folder.held.new_path()
        if place is None:  # moved once more, just now
            return
        self._trainer.checkpoints.save_anew(place)
        raise _leaving(
            f"the run's folder {self._folder.path} was moved to {place} while it trained; its state is saved there. "
            f"Continue it with: tiny-gpt resume {quoted(str(place))}",
            "run-folder-moved",
        )

    def _take_over_or_leave(self) -> None:
        if self._trainer.checkpoints.is_newest_on_disk():
            self._folder.take_again()
            self._warn("the run's folder is back, as on a disk that was plugged in again; training continues in it")
            return
        raise _leaving(
            f"another folder is now at {self._folder.path}, and this run's own folder is gone: nothing more is saved, "
            "so that it does not overwrite another run's files",
            "run-folder-replaced",
        )

    def _warn(self, text: str) -> None:
        self._trainer.state.warn(text)


def _leaving(message: str, code: str) -> TinyGPTError:
    """Under the watchdog a new process finds out whether it can go on."""
    return (RestartRequestedError if is_watched() else BadInputError)(message, code=code)
