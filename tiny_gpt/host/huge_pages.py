"""Has Linux give a training process memory in pages of 2 MiB instead of 4 KiB. The processor then looks up fewer
addresses of pages (TLB misses), and a step takes 2 to 13% less time (docs/log/training-step.md).

Most distributions give them only to programs that ask. glibc asks from version 2.35 on if a tunable says so, which it
reads when a process starts (GNU C Library Reference Manual, Memory Allocation Tunables); others ignore the variable.
"""

from collections.abc import Mapping

_VARIABLE, _TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def with_huge_pages(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` for a process that asks for them, unless the user has set whether it does."""
    tunables = environment.get(_VARIABLE, "")
    if _TUNABLE in tunables:
        return dict(environment)
    return {**environment, _VARIABLE: ":".join(filter(None, (tunables, f"{_TUNABLE}=1")))}
