"""Transparent huge pages for training on Linux: pages of 2 MiB instead of 4 KiB cause fewer TLB misses, and a step took
2 to 13% less time (docs/log/training-step.md).

Where the system's setting is `madvise`, only programs that ask get them. glibc 2.35 or later asks for what malloc
allocates if a tunable is set when the process starts (GNU C Library Reference Manual, Memory Allocation Tunables).
Other systems ignore the variable.
"""

from collections.abc import Mapping

_VARIABLE, _TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def with_huge_pages(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` for a process that asks for huge pages; unchanged if it sets the tunable already."""
    tunables = environment.get(_VARIABLE, "")
    if _TUNABLE in tunables:
        return dict(environment)
    return {**environment, _VARIABLE: ":".join(filter(None, (tunables, f"{_TUNABLE}=1")))}
