"""Decoding on a CPU: weights.py packs a model, forward.py takes rows of tokens through it with layers.py,
compiled_model.py runs it; decoder.py continues one prompt, batch_decoder.py many texts that come and go."""
