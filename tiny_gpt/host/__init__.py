"""The machine that a run uses: watchdog, signals, sleep, battery. It imports nothing of the training."""
