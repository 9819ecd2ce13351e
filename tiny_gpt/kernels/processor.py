"""What this processor has beyond the instructions that all processors of its kind have.

LLVM's names of the features are those of https://github.com/llvm/llvm-project, llvm/lib/Target/X86/X86.td.
"""

import ctypes
import platform

from numba.core.registry import cpu_target

_FEATURES = frozenset(cpu_target.target_context.codegen()._tm_features.split(","))

# Vector registers of 512 bits, 16 fp32 numbers.
HAS_512_BITS = "+avx512f" in _FEATURES
# Multiplies pairs of bf16 numbers in one instruction (Intel since Cooper Lake, AMD since Zen 4).
HAS_BF16 = "+avx512bf16" in _FEATURES

# Linux, arch/x86/include/uapi/asm/prctl.h and Documentation/arch/x86/xstate.rst.
_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


def _may_use_amx() -> bool:
    """Ask the kernel for this process's use of AMX's registers, which are so large that none has them unasked."""
    if platform.system() != "Linux" or not {"+amx-tile", "+amx-bf16"} <= _FEATURES:
        return False
    try:
        return ctypes.CDLL(None).syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0
    except (OSError, AttributeError):
        return False


# Multiplies matrices of bf16 numbers in registers of 16 rows (Intel since Sapphire Rapids), and this process may.
HAS_AMX = HAS_BF16 and HAS_512_BITS and _may_use_amx()
