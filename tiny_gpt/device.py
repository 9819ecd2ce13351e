"""Devices: which to compute on, in which precision, and how much memory was used.

`auto` prefers cuda, then mps, then cpu. It uses bf16 only where that is measured (CPU) or known (CUDA) to be faster. On
MPS it uses fp32, because bf16 was no faster there (nanochat's log) and gave wrong results on some chips
(pytorch#181936).
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
from typing import Any

import psutil
import torch

from tiny_gpt.errors import OutOfResourcesError, UsageError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# CPUs with bf16 units multiply 4 to 12 times as fast in bf16 as in fp32 (AVX512-bf16, AMX). Others are slower in bf16.
BF16_MIN_SPEEDUP = 1.5
# A CPU that takes this long for one small product is slow in that precision, so it is not measured again.
PATIENCE_S = 0.1
# The share of the available memory that a plan, or the weights of a model, may use.
USABLE_SHARE = 0.8
# With more tokens at once, MPS has silently returned wrong gradients after a change of shape (pytorch#177116).
MPS_MAX_TOKENS = 32_768


def available_devices() -> list[str]:
    """The devices that this machine and this version of torch support, in the order in which `auto` prefers them."""
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    devices = (["cuda"] if devices else []) + devices
    return devices + (["mps"] if torch.backends.mps.is_available() else []) + ["cpu"]


def pick_device(name: str) -> torch.device:
    """The device called `name`, or the preferred one for "auto". Raises UsageError, listing those that exist."""
    available = available_devices()
    if name == "auto":
        return torch.device(available[0])
    if name not in available:
        raise UsageError(
            f"--device {name}: not on this machine; available: auto, {', '.join(available)}",
            code="device-unavailable",
        )
    return torch.device(name)


def candidate_precisions(name: str, device: torch.device) -> list[str]:
    """The precisions that --precision `name` allows, the likely fastest first; "auto" excludes those known to be slow.

    For a CPU with fast bf16 products it allows both, because a whole training step may still be faster in fp32.
    Raises UsageError for a precision that the device lacks.
    """
    if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UsageError(
            f"--precision bf16: {torch.cuda.get_device_name(device)} does not support it; use fp32",
            code="bf16-unsupported",
        )
    if name != "auto":
        return [name]
    if not _bf16_is_faster(device):
        return ["fp32"]
    return ["bf16", "fp32"] if device.type == "cpu" else ["bf16"]


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of activations and matrix products; "auto" is bf16 if its products are faster."""
    return PRECISIONS[candidate_precisions(name, device)[0]]


def max_sequences_at_once(block_size: int, device: torch.device) -> int | None:
    """The most sequences that `device` computes correctly in one batch; None if only its memory limits them."""
    return max(1, MPS_MAX_TOKENS // block_size) if device.type == "mps" else None


def configure_torch(device: torch.device, deterministic: bool = False) -> None:
    """Set what makes torch faster on `device`; `deterministic` makes GPU results reproducible."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # CUDA reads it when it starts
        torch.backends.cudnn.benchmark = False
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # the call imports torch's compiler: 0.8 s
        torch.use_deterministic_algorithms(deterministic)
    if device.type == "cpu":
        torch.set_flush_denormal(True)  # Adam's moments of unused tokens decay to denormals: 20 times slower
        _keep_freed_memory()
    elif device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def _keep_freed_memory() -> None:
    """Have glibc reuse freed memory instead of returning it to the system, which costs 13% of a default step on Linux.

    By default, glibc gets large blocks with mmap and unmaps them when freed. So each step's activations are new pages,
    which the kernel must fill with zeros.
    """
    _set_malloc_thresholds(2**31 - 1)  # never: the largest int


def return_freed_memory() -> None:
    """Have glibc return large blocks to the system as soon as they are freed.

    Slower, but the process then takes only what it uses. With --shard, where whole weights come and go, it took 660
    instead of 1,160 MiB (6 x 768).
    """
    _set_malloc_thresholds(1 << 20)


def _set_malloc_thresholds(n_bytes: int) -> None:
    m_trim_threshold, m_mmap_threshold = -1, -3  # constants of malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):  # only glibc has mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(m_mmap_threshold, n_bytes)
        mallopt(m_trim_threshold, n_bytes)


def _bf16_is_faster(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "mps":
        return False
    return _product_seconds(torch.float32) > BF16_MIN_SPEEDUP * _product_seconds(torch.bfloat16)


def _product_seconds(dtype: torch.dtype) -> float:
    """Seconds of the fastest of six (512, 512) by (512, 512) products on the CPU."""
    a, b = torch.ones(512, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    best = float("inf")
    for _ in range(6):  # the first ones also start the threads
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
        if best > PATIENCE_S:
            break
    return best


def processor_name() -> str:
    """The CPU's model: "Apple M4", or on Linux "AMD EPYC 26 2", with its family and model numbers."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if sys.platform == "linux":
            first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
            cpu = dict(re.findall(r"^(.+?)\s*:\s*(.+)$", first, re.MULTILINE))
            names = ("model name", "cpu family", "model", "CPU implementer", "CPU part")  # the last two on ARM
            if model := " ".join(cpu[name] for name in names if name in cpu):
                return model
        elif sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            if brand := subprocess.run(command, capture_output=True, timeout=5).stdout.decode(errors="replace").strip():
                return brand
    return platform.processor() or platform.machine()


def describe_device(device: torch.device) -> str:
    """For messages: "cpu (2 threads)", "cuda (NVIDIA H200)"."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "mps":
        return f"mps ({platform.processor() or 'Apple'} GPU)"
    threads = torch.get_num_threads()
    return f"cpu ({threads} thread{'s' if threads > 1 else ''})"


def to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy `x`, a tensor on the CPU, to `device`; to CUDA asynchronously."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def synchronize(device: torch.device) -> None:
    """Wait for all queued work, so that a clock read afterwards measures it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def release_memory(device: torch.device) -> None:
    """Free memory that torch has cached and nothing uses."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def is_out_of_memory(failure: BaseException) -> bool:
    """Whether a device ran out of memory: CUDA has its own exception, MPS raises RuntimeError, CPUs either."""
    if isinstance(failure, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(failure).lower()
    return isinstance(failure, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def available_memory_bytes(device: torch.device) -> int:
    """Memory that a model may use on `device`, including what this process already holds."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(USABLE_SHARE * free)
    available = psutil.virtual_memory().available + psutil.Process().memory_info().rss
    if device.type == "mps":
        recommended: Any = getattr(torch.mps, "recommended_max_memory", lambda: available)
        available = min(available, recommended())
    return int(USABLE_SHARE * available)


def require_memory(n_bytes: int, what: str, device: torch.device, advice: str) -> None:
    """Raise OutOfResourcesError where `what` takes more bytes than `device` has available."""
    available = available_memory_bytes(device)
    if n_bytes > available:
        raise OutOfResourcesError(
            f"{what} takes about {n_bytes / 2**30:.1f} GiB of memory, but only {available / 2**30:.1f} GiB can be used "
            f"here: {advice}",
            code="not-enough-memory",
        )


def reset_peak_memory(device: torch.device) -> None:
    """Start `peak_memory_bytes` anew; only CUDA supports it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def memory_bytes(device: torch.device) -> int:
    """The memory in use now: of the GPU for cuda, otherwise this process's resident set."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory used at once so far: of the GPU for cuda, otherwise this process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    memory = psutil.Process().memory_info()
    if sys.platform == "win32":
        return int(memory.peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
