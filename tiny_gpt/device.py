"""Which device computes, in which precision, how much at once, and how much memory that took.

Order of preference: cuda, mps, cpu. bf16 only where it is measured (CPU) or known (CUDA) to be faster; MPS stays
in fp32, where bf16 brought no speed (nanochat's log) and wrong numbers on some chips (pytorch#181936).
"""

import contextlib
import ctypes
import gc
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch

from tiny_gpt.errors import UsageError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# A CPU with bf16 units multiplies 4 to 12 times as fast as in fp32 (AVX512-bf16 to AMX); one without is slower,
BF16_MIN_SPEEDUP = 1.5
# and may be so much slower that one small product tells.
PATIENCE_S = 0.1
# MPS has returned wrong gradients, without a word, of more tokens at once after it had seen another shape
# (pytorch#177116).
MPS_MAX_TOKENS = 32_768


def available_devices() -> list[str]:
    """Devices this machine and this torch can use, the preferred first."""
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    devices = (["cuda"] if devices else []) + devices
    return devices + (["mps"] if torch.backends.mps.is_available() else []) + ["cpu"]


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" takes the best there is. Raises UsageError naming those that exist."""
    available = available_devices()
    if name == "auto":
        return torch.device(available[0])
    if name not in available:
        raise UsageError(f"--device {name}: not on this machine; here are {', '.join(available)} (or auto)")
    return torch.device(name)


def candidate_precisions(name: str, device: torch.device) -> list[str]:
    """Those that `name` leaves, the likely fastest first; "auto" keeps off those that would be slow for sure.

    On a CPU whose products are faster in bf16 a whole step may not be, so there both are left. Raises UsageError.
    """
    if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UsageError(f"--precision bf16: {torch.cuda.get_device_name(device)} has no bf16; use fp32")
    if name != "auto":
        return [name]
    if not _bf16_is_faster(device):
        return ["fp32"]
    return ["bf16", "fp32"] if device.type == "cpu" else ["bf16"]


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of activations and matrix products; "auto" takes bf16 where its products are the faster ones."""
    return PRECISIONS[candidate_precisions(name, device)[0]]


def max_blocks_at_once(block_size: int, device: torch.device) -> int | None:
    """Windows of `block_size` tokens that `device` computes right together; None where only its memory counts."""
    return max(1, MPS_MAX_TOKENS // block_size) if device.type == "mps" else None


def configure_torch(device: torch.device, deterministic: bool = False) -> None:
    """Settings of torch that only make it faster; `deterministic` makes a GPU give the same numbers every time."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.backends.cudnn.benchmark = False
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # saying so loads torch's compiler: 0.8 s
        torch.use_deterministic_algorithms(deterministic)
    if device.type == "cpu":
        torch.set_flush_denormal(True)  # Adam's second moments of unused ids fade into denormals, 20 times slower
        _keep_freed_memory()
    elif device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def _keep_freed_memory() -> None:
    """Have glibc reuse the activations' memory instead of fetching zeroed pages for each: 13% of a guide step."""
    m_trim_threshold, m_mmap_threshold, never = -1, -3, 2**31 - 1  # malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):  # other systems have no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(m_mmap_threshold, never)
        mallopt(m_trim_threshold, never)


def _bf16_is_faster(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "mps":
        return False
    return _product_seconds(torch.float32) > BF16_MIN_SPEEDUP * _product_seconds(torch.bfloat16)


def _product_seconds(dtype: torch.dtype) -> float:
    """Fastest of a few (512, 512) x (512, 512) products on the CPU, in seconds."""
    a, b = torch.ones(512, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    best = float("inf")
    for _ in range(6):  # the first ones pay for starting the threads
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
        if best > PATIENCE_S:
            break
    return best


def processor_name() -> str:
    """What kind of CPU this is: "Apple M4", or on Linux "AMD EPYC 26 2" with its family and model as numbers."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if sys.platform == "linux":
            first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
            told = dict(re.findall(r"^(.+?)\s*:\s*(.+)$", first, re.MULTILINE))
            names = ("model name", "cpu family", "model", "CPU implementer", "CPU part")  # the latter on ARM
            if kind := " ".join(told[name] for name in names if name in told):
                return kind
        elif sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            if brand := subprocess.run(command, capture_output=True, timeout=5).stdout.decode(errors="replace").strip():
                return brand
    return platform.processor() or platform.machine()


def describe_device(device: torch.device) -> str:
    """A line for people: `cpu (2 threads)`, `cuda (NVIDIA H200)`."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "mps":
        return f"mps ({platform.processor() or 'Apple'} GPU)"
    threads = torch.get_num_threads()
    return f"cpu ({threads} thread{'s' if threads > 1 else ''})"


def to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU's `x` on `device`; CUDA fetches it while the host goes on."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def synchronize(device: torch.device) -> None:
    """Wait for all queued work, so that a clock read afterwards tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def release_memory(device: torch.device) -> None:
    """Give back what nothing uses any more and torch keeps."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def is_out_of_memory(failure: BaseException) -> bool:
    """Whether a device had no memory left: CUDA's own error, MPS's plain RuntimeError, the CPU's two ways."""
    if isinstance(failure, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(failure).lower()
    return isinstance(failure, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def reset_peak_memory(device: torch.device) -> None:
    """Have `peak_memory_bytes` count from here, where it can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held at once so far: the GPU's for cuda, this process's resident set elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    memory = psutil.Process().memory_info()
    if sys.platform == "win32":
        return int(memory.peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
