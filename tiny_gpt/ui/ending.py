"""The message about the end of a training."""

from tiny_gpt.duration import format_duration
from tiny_gpt.files import quoted
from tiny_gpt.host.notify import Message
from tiny_gpt.run.ending import Ending

MAX_REASON = 300


def message_about(ending: Ending) -> Message:
    """Example: "my_book: training finished" and "Best model: 1.432 bits per byte, step 12,000. Took 6 h 00 min.\""""
    sentences = []
    run = ending.summary
    if ending.status == "failed":
        reason = " ".join(ending.reason.split())[:MAX_REASON]
        sentences.append(reason or f"The training process ended with exit code {ending.exit_code}.")
    if run is not None and run.best_val_bits_per_byte is not None:
        at = f", step {run.best_step:,}" if run.best_step is not None else ""
        sentences.append(f"Best model: {run.best_val_bits_per_byte:.3f} bits per byte{at}.")
    if run is not None and run.elapsed_s is not None:
        sentences.append(f"Took {format_duration(run.elapsed_s)}.")
    if ending.status != "finished" and ending.has_begun:
        sentences.append(f"To continue: tiny-gpt resume {quoted(ending.name)}")
    text = " ".join(sentences) or "There is no model yet."
    return Message(
        title=f"{ending.name}: training {ending.status}",
        text=text,
        is_alarm=ending.status == "failed",
        facts=ending.facts(),
    )
