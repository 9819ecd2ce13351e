"""How the threads of numerical libraries wait for one another."""

import os


def limit_thread_spinning() -> None:
    """Have torch's CPU threads spin for microseconds when they wait for one another, then sleep.

    Call it before torch is imported. With longer spinning, a step took three times as long while another program used
    one of two cores; without any, a small model's step took half as long again on an idle machine
    (docs/log/training-step.md).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
