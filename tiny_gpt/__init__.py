"""tiny_gpt: train the best small language model that your own computer can train by morning."""

__version__ = "0.1.0"
