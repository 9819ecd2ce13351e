"""The definitions in fp64 agree with torch.nn.functional in fp64, outputs and gradients."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tiny_gpt.numerics import reference
from tiny_gpt.numerics.harness import in_fp64

TARGETS, IDS = torch.tensor([1, 0, 6, 2, 2]), torch.tensor([1, 1, 4, 1])


@pytest.mark.parametrize(
    ("definition", "function", "shapes"),
    [
        (reference.gelu, partial(F.gelu, approximate="tanh"), [(5, 7)]),
        (reference.silu, F.silu, [(5, 7)]),
        (reference.softmax, partial(F.softmax, dim=-1), [(5, 7)]),
        (reference.linear, F.linear, [(2, 5, 7), (3, 7), (3,)]),
        (reference.linear, F.linear, [(5, 7), (3, 7)]),
        (reference.attention, partial(F.scaled_dot_product_attention, is_causal=True), [(2, 3, 6, 4)] * 3),
        (reference.attention, F.scaled_dot_product_attention, [(2, 3, 1, 4), (2, 3, 6, 4), (2, 3, 6, 4)]),
        (
            partial(reference.layer_norm, eps=1e-5),
            lambda x, w, b: F.layer_norm(x, (7,), w, b, 1e-5),
            [(5, 7), (7,), (7,)],
        ),
        (partial(reference.rms_norm, eps=1e-6), lambda x, w: F.rms_norm(x, (7,), w, 1e-6), [(5, 7), (7,)]),
        (
            partial(reference.cross_entropy, targets_N=TARGETS),
            partial(F.cross_entropy, target=TARGETS, reduction="none"),
            [(5, 7)],
        ),
        (partial(reference.embedding, ids_N=IDS), partial(F.embedding, IDS), [(5, 7)]),
    ],
)
def test_the_reference_equals_torch_in_fp64(definition, function, shapes):
    rng = np.random.default_rng(0)
    inputs = [torch.from_numpy(rng.normal(size=shape)) for shape in shapes]
    gradient = torch.from_numpy(rng.normal(size=function(*inputs).shape))
    for x, y in zip(*(in_fp64(each, inputs, gradient) for each in (definition, function)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)
