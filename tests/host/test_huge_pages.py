"""Training processes get memory in huge pages, where Linux has them for programs that ask."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_gpt.host.huge_pages import with_huge_pages
from tiny_gpt.host.limits import Limits
from tiny_gpt.host.watchdog import watch

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
ALLOCATE = """
import re
memory = bytearray(b"x") * (64 << 20)
print(re.search(r"AnonHugePages: *([0-9]+) kB", open("/proc/self/smaps_rollup").read())[1])
"""


def can_ask() -> bool:
    library, version = platform.libc_ver()
    has_tunable = library == "glibc" and tuple(map(int, version.split("."))) >= (2, 35)
    return has_tunable and SETTING.exists() and "[madvise]" in SETTING.read_text()


@pytest.mark.skipif(not can_ask(), reason="huge pages cannot be asked for here")
def test_a_watched_process_has_huge_pages(capfd, monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    subprocess.run([sys.executable, "-c", ALLOCATE], check=True)
    code = watch([sys.executable, "-c", ALLOCATE + "import os; os._exit(3)"], [], lambda: 0, print, Limits())
    alone, watched = map(int, capfd.readouterr().out.split()[:2])
    assert alone == 0 and watched >= 32 << 10, code


def test_other_tunables_and_a_choice_of_the_users_stay():
    assert with_huge_pages({"A": "b"}) == {"A": "b", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    arenas = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}
    assert with_huge_pages(arenas)["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"
    without = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}
    assert with_huge_pages(without) == without
