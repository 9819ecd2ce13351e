"""Which elements dropout drops: a hash of their number and of a seed, so that no mask is kept for the backward pass.

One hash of 32 bits decides about two elements, 16 bits each. The mixing is that of MurmurHash3's last step (Appleby,
public domain), with another part of the seed added half-way, so that no two seeds give the same masks shifted.
"""

import numpy as np

from tiny_gpt.kernels.compiled import compiled

_W = np.uint32


@compiled
def seed_of(seed, part):
    """Two words for one part (a layer, a head) of what the 64-bit `seed` is for (splitmix64: Steele et al. 2014)."""
    x = np.uint64(seed) + (np.uint64(part) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return _W(x & np.uint64(0xFFFFFFFF)), _W(x >> np.uint64(32))


@compiled
def bits(number, seed, another_seed):
    """32 random bits for the elements of one number."""
    # numba computes in 64 bits unless it is told each time.
    x = _W(_W(_W(number) * _W(0x9E3779B1)) ^ seed)
    x = _W(_W(_W(x ^ _W(x >> _W(16))) * _W(0x85EBCA6B)) + another_seed)
    x = _W(_W(x ^ _W(x >> _W(13))) * _W(0xC2B2AE35))
    return _W(x ^ _W(x >> _W(16)))
