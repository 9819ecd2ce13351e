"""Several processes that train one model: who they are, how they talk, and how their gradients are added up.

The engine is torch.distributed, started by torchrun. docs/several-devices.md explains the design.
"""
