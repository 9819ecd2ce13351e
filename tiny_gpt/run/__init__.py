"""One training run: start or resume it, train, save, evaluate."""
