"""Optimizers that do not load torch.compile."""

import inspect

import torch


class UncompiledOptimizer(torch.optim.Optimizer):
    """A base class that saves two seconds at the start of every training.

    PyTorch marks these methods as not to be compiled, and imports torch._dynamo to do so at the first call of each. No
    optimizer is compiled here, not even where the model is, so the plain methods do the same.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
