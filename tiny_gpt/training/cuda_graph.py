"""The training step as CUDA graphs: its GPU work is recorded once and then replayed whole.

A small model's kernels take microseconds, less than Python and the driver take to launch each one; a graph launches
them all with one call (https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/). A graph reads and writes the
same memory on every replay, so whatever a step needs (tokens, learning rate, step number, gradients) lies in tensors
that stay, and new values are copied into them.

Shapes: B sequences in a micro-batch, T tokens in a sequence.
"""

import contextlib
from collections.abc import Callable

import torch

from tiny_gpt.backends import get_backend
from tiny_gpt.config import TrainConfig
from tiny_gpt.data.dataloader import Batch
from tiny_gpt.distributed.ranks import current_ranks
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.soft_targets import SoftTargets
from tiny_gpt.training.guard import Guard
from tiny_gpt.training.micro_batches import MicroBatch, micro_batches
from tiny_gpt.training.step import StepResult, accumulate_gradients, update_weights

# Backends whose steps are recorded where the device is a CUDA GPU.
GRAPHED_BACKENDS = ("cuda_graph", "compiled")
# Calls that run eagerly before the recording: libraries choose their algorithms and allocate on their first calls.
N_WARMUP_CALLS = 2


def make_cuda_graph_update(
    model: GPT, optimizer: torch.optim.Optimizer, config: TrainConfig, guard: Guard | None
) -> "CudaGraphUpdate | None":
    """For `train_step`; None where the backend or the device has no use for it."""
    has_sum = config.exact or not current_ranks().is_alone  # of gradients, between the backward pass and the update
    if model.device.type != "cuda" or config.backend not in GRAPHED_BACKENDS or has_sum:
        return None
    return CudaGraphUpdate(model, optimizer, config, guard)


class CudaGraphUpdate:
    """`train_step` for one model, optimizer and guard: one graph for each shape of micro-batch, one for the update."""

    def __init__(self, model: GPT, optimizer: torch.optim.Optimizer, config: TrainConfig, guard: Guard | None) -> None:
        self.model, self.optimizer, self.config, self.guard = model, optimizer, config, guard
        self._backend = get_backend(config.backend)
        # What the graphs read: the learning rate, the step's number, the loss so far.
        self._learning_rate = torch.zeros((), device=model.device)
        self._step = torch.zeros((), dtype=torch.int64, device=model.device)
        self._loss = torch.zeros((), device=model.device)
        # What they leave for the caller.
        self._result = StepResult(*(torch.zeros((), device=model.device) for _ in range(2)))
        self._cast_model = _cast_copy(model)
        self.forget()

    def forget(self) -> None:
        """Free the graphs' memory; the next steps record new ones. For when memory has run out, or another dropout or
        weight decay is set: a graph has those of its recording."""
        if self._cast_model is not None:
            self._cast_model.set_dropout(self.model.config.dropout)
        self._micro_batch_graphs: dict[tuple[torch.Size, float, bool], _MicroBatchGraph] = {}
        self._update_graph = CudaGraph(self._update, self.model.device)
        self.optimizer.zero_grad(set_to_none=True)
        self._gradients: list[torch.Tensor] = []

    def __call__(self, batch: Batch, step: int, learning_rate: float, n_micro_batches: int = 1) -> StepResult:
        """`train_step` with this batch. The result's tensors are overwritten by the next call."""
        if not self._gradients:
            self._allocate_gradients()
        for micro_batch in micro_batches(batch, self.config, step, n_micro_batches, self.model.device):
            # The share is a Python number: a graph has it as a constant, so another share needs another graph.
            key = micro_batch.inputs_BT.shape, micro_batch.share, micro_batch.soft_targets is None
            if key not in self._micro_batch_graphs:
                self._micro_batch_graphs[key] = _MicroBatchGraph(micro_batch, self._accumulate)
            self._micro_batch_graphs[key](micro_batch)
        self._step.fill_(step)
        self._learning_rate.fill_(learning_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate
        self._update_graph()
        return self._result

    @property
    def is_recorded(self) -> bool:
        """Whether all graphs have settled, so that steps are as fast from now on as they will ever be."""
        return all(graph.is_settled for graph in self._graphs())

    @property
    def problem(self) -> Exception | None:
        """Why some of the work cannot be recorded and runs eagerly; None if all of it can."""
        return next((graph.problem for graph in self._graphs() if graph.problem), None)

    def _graphs(self) -> "list[CudaGraph]":
        return [self._update_graph, *(graph.graph for graph in self._micro_batch_graphs.values())]

    def _allocate_gradients(self) -> None:
        """Zeros that every graph adds to in place: `zero_grad` would give each step other memory."""
        self._loss.zero_()
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
            self._gradients.append(parameter.grad)

    # --- what the graphs record ---

    def _accumulate(self, micro_batch: MicroBatch) -> None:
        cast_model = self._cast_model
        if cast_model is None:
            self._loss += accumulate_gradients(self.model, self._backend, *micro_batch)
            return
        weights: list[torch.Tensor] = list(cast_model.parameters())
        with torch.no_grad():
            torch._foreach_copy_(weights, list(self.model.parameters()))
        cast_model.zero_grad(set_to_none=True)
        self._loss += accumulate_gradients(cast_model, self._backend, *micro_batch)
        # The gradients come in the low precision; they are summed over the micro-batches in fp32. torch's
        # foreach functions take all parameters in a few kernels.
        gradients = [torch.empty_like(gradient) for gradient in self._gradients]
        torch._foreach_copy_(gradients, [weight.grad for weight in weights if weight.grad is not None])
        torch._foreach_add_(self._gradients, gradients)

    def _update(self) -> None:
        """Change the weights, keep the result, and reset what the next step's gradients are added to."""
        clip, guard = self.config.grad_clip, self.guard
        grad_norm = update_weights(self.model, self.optimizer, clip, guard, self._step, self._loss)
        self._result.grad_norm.copy_(grad_norm)
        self._result.loss.copy_(self._loss)
        self._loss.zero_()
        torch._foreach_zero_(self._gradients)


def _cast_copy(model: GPT) -> GPT | None:
    """A second model whose weights have the dtype of the matrix products; None where that is the weights' own.

    All weights are cast at once by one kernel, instead of one by one as each is used.
    """
    if model.compute_dtype == torch.float32:
        return None
    return GPT(model.config, model.vocab_size, model.compute_dtype).to(model.device, model.compute_dtype).train()


class _MicroBatchGraph:
    """The graph for micro-batches of one shape, and the memory that it reads their tokens and soft targets from."""

    def __init__(self, example: MicroBatch, work: Callable[[MicroBatch], None]) -> None:
        inputs_BT, targets_BT = torch.empty_like(example.inputs_BT), torch.empty_like(example.targets_BT)
        soft = example.soft_targets and SoftTargets(*map(torch.empty_like, example.soft_targets))
        self._micro_batch = MicroBatch(inputs_BT, targets_BT, example.share, soft)
        self.graph = CudaGraph(lambda: work(self._micro_batch), inputs_BT.device)

    def __call__(self, micro_batch: MicroBatch) -> None:
        for own, new in zip(_tensors_of(self._micro_batch), _tensors_of(micro_batch), strict=True):
            own.copy_(new)
        self.graph()


def _tensors_of(micro_batch: MicroBatch) -> tuple[torch.Tensor, ...]:
    return micro_batch.inputs_BT, micro_batch.targets_BT, *(micro_batch.soft_targets or ())


class CudaGraph:
    """A function that runs eagerly on its first calls, is then recorded, and replayed from there on.

    What cannot be recorded keeps running eagerly. Random numbers follow the torch.manual_seed before each call, as they
    would without a graph.
    """

    def __init__(self, work: Callable[[], None], device: torch.device) -> None:
        self._work, self._device = work, device
        self._n_calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self.problem: Exception | None = None
        """Why `work` cannot be recorded."""

    @property
    def is_settled(self) -> bool:
        """Whether it is recorded, or never will be."""
        return self._graph is not None or self.problem is not None

    def __call__(self) -> None:
        self._n_calls += 1
        with torch.cuda.device(self._device):  # CUDA records the current device only
            if self._n_calls > N_WARMUP_CALLS and not self.is_settled:
                self._record()
            if self._graph is not None:
                self._graph.replay()
            else:
                self._run_eagerly()

    def _run_eagerly(self) -> None:
        """On a side stream, as torch.cuda.CUDAGraph asks of warm-up calls: autograd remembers the stream that it first
        accumulated on, and the default stream cannot be recorded."""
        default, side = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)
        side.wait_stream(default)
        with torch.cuda.stream(side):
            self._work()
        default.wait_stream(side)

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: other threads may call CUDA meanwhile; one reads the next batch.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._work()
        except Exception as problem:  # whatever a driver or a kernel raises
            self.problem = problem.with_traceback(None)
            _replace_generator(self._device)
        else:
            self._graph = graph


def _replace_generator(device: torch.device) -> None:
    """Give torch a new generator with the same seed: a failed recording leaves the old one waiting for its end."""
    with contextlib.suppress(RuntimeError):
        torch.cuda.synchronize(device)
    index = torch.cuda.current_device() if device.index is None else device.index
    default, fresh = torch.cuda.default_generators[index], torch.Generator(device)
    fresh.manual_seed(default.initial_seed())
    default.graphsafe_set_state(fresh.graphsafe_get_state())
