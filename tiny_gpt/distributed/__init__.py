"""Several processes that train one model: their ranks, their communication, and the sum of their gradients.

The engine is torch.distributed, started by torchrun. docs/several-devices.md explains the design.
"""
