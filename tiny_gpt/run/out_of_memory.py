"""What a training does when memory runs out: the same work again in smaller parts, or a fresh process."""

from collections.abc import Callable
from typing import TypeVar

from tiny_gpt.device import is_out_of_memory
from tiny_gpt.errors import OutOfResourcesError, RestartRequestedError, TinyGPTError
from tiny_gpt.host.heartbeat import is_watched
from tiny_gpt.run.evaluator import Evaluator
from tiny_gpt.run.state import TrainState
from tiny_gpt.training.step import UpdateInterruptedError

Result = TypeVar("Result")


def retry_out_of_memory(state: TrainState, evaluator: Evaluator, compute: Callable[[], Result]) -> Result:
    """What `compute` returns, with micro-batches of half the size each time that memory runs out.

    Raises RestartRequestedError or OutOfResourcesError where it ran out while weights were updated.
    """
    while True:
        try:
            return compute()
        except UpdateInterruptedError as failure:
            raise _cannot_repeat(state.step + 1) from failure
        except Exception as failure:
            if not is_out_of_memory(failure) or state.micro_batch_size == 1:
                raise
        before = state.micro_batch_size
        state.shrink_micro_batches()
        evaluator.fit_batch_size()
        state.warn(
            f"out of memory: from now on {state.micro_batch_size} sequences are computed at once instead of "
            f"{before}; the loss is still that of the whole batch"
        )


def _cannot_repeat(step: int) -> TinyGPTError:
    """The end of this process: the weights are no longer those of any step, and are not saved."""
    kind: type[TinyGPTError] = OutOfResourcesError
    remedy = "close other programs and continue from there with tiny-gpt resume"
    if is_watched():
        kind, remedy = RestartRequestedError, "training continues from there"
    return kind(
        f"out of memory while the weights were updated in step {step:,}, which cannot be repeated. Everything up to "
        f"the last checkpoint is saved; {remedy}",
        code="out-of-memory-in-update",
    )
