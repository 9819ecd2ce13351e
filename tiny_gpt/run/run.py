"""A training run from its settings to its model files: the entry point of this package."""

from collections.abc import Generator

from tiny_gpt.config import RunConfig
from tiny_gpt.files import user_path
from tiny_gpt.host.monitor import HostMonitor
from tiny_gpt.host.signals import StopRequest
from tiny_gpt.run.events import Event
from tiny_gpt.run.folder_guard import FolderGuard
from tiny_gpt.run.leader import led_ranks
from tiny_gpt.run.output_folder import run_lock
from tiny_gpt.run.resume import resume_run
from tiny_gpt.run.sharing import use_all_cores
from tiny_gpt.run.start import start_run
from tiny_gpt.training.budget import RunRequest


def run(
    config: RunConfig, resume: bool = False, request: RunRequest | None = None, stop: StopRequest | None = None
) -> Generator[Event, None, None]:
    """Train as `config` says, into its out_dir; yields preparation events, then Prepared, ..., Finished.

    With `resume`, continue from the newest checkpoint there that verifies. From the first step on, Ctrl+C and SIGTERM
    end the run after saving; closing the terminal does not end it. Raises a TinyGPTError, where possible before
    anything in out_dir is changed. A `stop` that is given can end the run as Ctrl+C does.

    In a process that leads others (distributed/ranks.py), they train with it, and end with it.
    """
    request = request or RunRequest()
    with led_ranks(), run_lock(user_path(config.train.out_dir)) as folder, stop or StopRequest() as stop:
        use_all_cores()
        prepared = yield from (resume_run if resume else start_run)(config, request)
        trainer = prepared.trainer
        trainer.state.leader.begin(prepared.config, trainer.dataset, trainer.stages.other is not None)
        yield prepared.event
        stop.listen()
        with HostMonitor(stop, prepared.config.reliability.keep_awake) as monitor:
            guard = FolderGuard(folder, prepared)
            for event in trainer.train(monitor):
                guard.check()  # before anything about this event is written
                yield event
