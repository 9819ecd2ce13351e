"""Which device computes, in which precision, and how much memory that took.

Order of preference: cuda, mps, cpu. bf16 only where it is measured (CPU) or known (CUDA) to be faster; MPS stays
in fp32, where bf16 brought no speed (nanochat's log) and wrong numbers on some chips (pytorch#181936).
"""

import contextlib
import ctypes
import os
import platform
import sys
import time

import psutil
import torch

from tiny_gpt.errors import UsageError

# A CPU with bf16 units multiplies 4 to 12 times as fast as in fp32 (AVX512-bf16 to AMX); one without is slower.
BF16_MIN_SPEEDUP = 1.5


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


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of activations and matrix products; "auto" takes bf16 where it is the faster one."""
    if name == "auto":
        name = "bf16" if _bf16_is_faster(device) else "fp32"
    if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UsageError(f"--precision bf16: {torch.cuda.get_device_name(device)} has no bf16; use fp32")
    return torch.bfloat16 if name == "bf16" else torch.float32


def configure(device: torch.device, deterministic: bool = False) -> None:
    """Settings of torch that only make it faster; `deterministic` makes a GPU give the same numbers every time."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.backends.cudnn.benchmark = False
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
    return best


def describe_device(device: torch.device) -> str:
    """A line for people: `cpu (2 threads)`, `cuda (NVIDIA H200)`."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "mps":
        return f"mps ({platform.processor() or 'Apple'} GPU)"
    threads = torch.get_num_threads()
    return f"cpu ({threads} thread{'s' if threads > 1 else ''})"


def synchronize(device: torch.device) -> None:
    """Wait for all queued work, so that a clock read afterwards tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def release_memory(device: torch.device) -> None:
    """Give back what torch keeps for reuse, after memory has run out."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


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
