"""Text to token ids and back: byte, char and BPE tokenizers, all lossless."""
