"""Work on a CUDA GPU that is recorded once and then repeated whole (CUDA graphs).

A small model's kernels take microseconds, less than Python and the driver take to start each; a recording starts them
all by one call.
"""

import contextlib
from collections.abc import Callable

import torch

# So often a work is done as it is before it is recorded: libraries choose and allocate on their first calls.
FIRST_CALLS = 2


class Recording:
    """`work`, done as it is the first few times, then recorded, then repeated; what cannot be recorded stays as it is.

    Random numbers follow torch.manual_seed before each call, as they would without.
    """

    def __init__(self, work: Callable[[], None], device: torch.device) -> None:
        self._work, self._device = work, device
        self._n_calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self.problem: Exception | None = None
        """Why it cannot be recorded."""

    @property
    def is_settled(self) -> bool:
        """Whether it is recorded, or never will be."""
        return self._graph is not None or self.problem is not None

    def __call__(self) -> None:
        self._n_calls += 1
        with torch.cuda.device(self._device):  # a recording is of the current one
            if self._n_calls > FIRST_CALLS and not self.is_settled:
                self._record()
            if self._graph is not None:
                self._graph.replay()
            else:
                self._do()

    def _do(self) -> None:
        """On a stream of its own: what a recording uses must not be tied to the usual one."""
        usual, apart = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)
        apart.wait_stream(usual)
        with torch.cuda.stream(apart):
            self._work()
        usual.wait_stream(apart)

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads go on meanwhile: one reads the next batch.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._work()
        except Exception as problem:  # whatever a driver or a kernel raises
            self.problem = problem.with_traceback(None)
            _free_random_numbers(self._device)
        else:
            self._graph = graph


def _free_random_numbers(device: torch.device) -> None:
    """A recording that fails leaves torch's generator waiting for its end: another takes its place, with its seed."""
    with contextlib.suppress(RuntimeError):
        torch.cuda.synchronize(device)
    index = torch.cuda.current_device() if device.index is None else device.index
    usual, fresh = torch.cuda.default_generators[index], torch.Generator(device)
    fresh.manual_seed(usual.initial_seed())
    usual.graphsafe_set_state(fresh.graphsafe_get_state())
