"""What a run came to: its best model, scored over more of the validation text than during the run."""

from collections.abc import Callable
from pathlib import Path

from tiny_gpt.device import is_out_of_memory, peak_memory_bytes
from tiny_gpt.host.monitor import HostMonitor
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io.model_file import load_model
from tiny_gpt.run.evaluator import Evaluator
from tiny_gpt.run.events import Finished
from tiny_gpt.run.forgetting import Known, measure_again
from tiny_gpt.run.model_files import ModelFiles
from tiny_gpt.run.state import TrainState

# Seconds to generate a sample of the best model, and for all else that follows training. A model of three million
# parameters takes 0.5 s on 2 cores of an AMD EPYC.
SAMPLE_S = 1.0


def finished(
    state: TrainState, evaluator: Evaluator, files: ModelFiles, monitor: HostMonitor, known: Known | None = None
) -> Finished:
    """The last event of a run, whose model files are written. A run that was stopped is not scored again.

    `known` is what the model that the run started from knew of the reference text. Raises BadInputError where the best
    model's file cannot be read back.
    """
    last = state.history[-1]
    best, path = (state.best, files.best_path) if state.best else (last, files.final_path)
    val_loss, scored_tokens, known_after = best.val_loss, evaluator.val_windows.n_tokens, None
    if monitor.stop.signal_number is None:
        if score := _final_score(state, evaluator, path, monitor.beat, known.seconds if known else 0.0):
            val_loss, scored_tokens = score
        if known:
            known_after = _score_saved(state, path, lambda model: measure_again(known, model, files.tokenizer))
    elapsed_s = state.clock.elapsed_s
    return Finished(
        best_path=path,
        best_epoch=best.epoch,
        best_step=best.step,
        best_val_loss=val_loss,
        best_val_bits_per_byte=evaluator.bits_per_byte(val_loss),
        scored_tokens=scored_tokens,
        final_path=files.final_path,
        last_step=last.step,
        elapsed_s=elapsed_s,
        eval_share=state.clock.eval_s / elapsed_s,
        save_share=state.clock.save_s / elapsed_s,
        peak_memory_bytes=peak_memory_bytes(state.model.device),
        stopped_by=monitor.stop.signal_number,
        incidents=[*state.counters.incidents, *monitor.summary()],
        left_s=state.budget.remaining_s(),
        known_before=known.bits_per_byte if known else None,
        known_after=known_after,
    )


def _final_score(
    state: TrainState, evaluator: Evaluator, path: Path, beat: Callable[[], None], reserved_s: float
) -> tuple[float, int] | None:
    """The loss of the model file at `path` over more validation text than during the run, and its number of tokens.

    None if the run was too short for more, or if memory runs out. In a timed run, `reserved_s` seconds stay unused.
    """
    left_s = state.budget.remaining_s()
    windows = evaluator.final_windows(None if left_s is None else left_s - SAMPLE_S - reserved_s)
    if windows is None:
        return None
    loss = _score_saved(state, path, lambda model: evaluator.score_best(windows, model, beat))
    return None if loss is None else (loss, windows.n_tokens)


def _score_saved(state: TrainState, path: Path, score: Callable[[GPT], float | None]) -> float | None:
    """What `score` returns of the model file at `path`; None if memory runs out."""
    try:
        with state.clock.count_as("eval"):
            return score(load_model(path, state.home, state.model.compute_dtype).model)  # beside the one in training
    except Exception as failure:
        if not is_out_of_memory(failure):
            raise
        return None
