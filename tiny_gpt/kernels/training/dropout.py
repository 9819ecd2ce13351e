"""Dropout without stored masks: whether an element is dropped is a hash of its number and of a seed.

The backward pass hashes again what the forward pass hashed, instead of reading a mask that would be as large as the
activations. One hash of 32 bits decides about two elements, 16 bits each: those below a threshold are dropped.
"""

from typing import NamedTuple

import numpy as np
import torch

from tiny_gpt.kernels.compiled import compiled
from tiny_gpt.model.dropout import inverse_keep_probability, n_dropped

_W = np.uint32
_U = np.uint64


class Dropout(NamedTuple):
    """One use of dropout: after one layer, or in one attention, for one batch."""

    threshold: np.uint32
    """Of the 2^16 values of 16 bits, how many drop an element; 0 without dropout."""
    keep_scale: float
    """1 / (1 - p): what is kept is multiplied by it, so that the expected value stays the same."""
    seed: np.uint64


def new_dropout(p: float) -> Dropout:
    """Dropout with probability `p` and a seed from torch's generator, which is drawn from only if p > 0."""
    seed = int(torch.randint(2**63 - 1, ()).item()) if p else 0
    return Dropout(np.uint32(n_dropped(p)), inverse_keep_probability(p), np.uint64(seed))


@compiled
def stream_seeds(seed, stream):
    """Two 32-bit seeds for one stream of random bits, for example one head's: splitmix64 (Steele et al. 2014)."""
    # A counter times an odd constant, then mixed: neighboring streams share no bits.
    x = _U(seed) + (_U(stream) + _U(1)) * _U(0x9E3779B97F4A7C15)
    x = (x ^ (x >> _U(30))) * _U(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> _U(27))) * _U(0x94D049BB133111EB)
    x = x ^ (x >> _U(31))
    return _W(x & _U(0xFFFFFFFF)), _W(x >> _U(32))


@compiled
def random_bits(number, seeds):
    """32 random bits: the final mixing of MurmurHash3 (Appleby, public domain).

    The second seed is added half-way. With the first alone, the bits of two seeds would be the same ones in another
    order.
    """
    # numba computes integers in 64 bits; a cast after each operation keeps them in 32, twice as many in a vector.
    x = _W(_W(_W(number) * _W(0x9E3779B1)) ^ seeds[0])
    x = _W(_W(_W(x ^ _W(x >> _W(16))) * _W(0x85EBCA6B)) + seeds[1])
    x = _W(_W(x ^ _W(x >> _W(13))) * _W(0xC2B2AE35))
    return _W(x ^ _W(x >> _W(16)))


@compiled
def keeps_pair(number, seeds, threshold):
    """Whether each of the two elements of one hash is kept."""
    # Two comparisons of 16 bits per hash; p is exact to 1 / 65536.
    bits = random_bits(number, seeds)
    return _W(bits & _W(0xFFFF)) >= threshold, _W(bits >> _W(16)) >= threshold
