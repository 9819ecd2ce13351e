"""The machine that a training runs on: watchdog, signals, sleep, battery."""
