"""tiny_gpt in a Python program: model.py opens a model, training.py trains one, run.py is what a training leaves."""

from tiny_gpt.host.threads import limit_thread_spinning

limit_thread_spinning()  # before torch is imported, if it is not yet

from tiny_gpt.api.model import Model, TokenScore, load  # noqa: E402
from tiny_gpt.api.run import Run  # noqa: E402
from tiny_gpt.api.training import TrainingPlan, plan, train  # noqa: E402
from tiny_gpt.view.run_files import Sample  # noqa: E402

__all__ = ["Model", "Run", "Sample", "TokenScore", "TrainingPlan", "load", "plan", "train"]
