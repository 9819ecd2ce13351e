"""The tensors of a checkpoint: safetensors files, checked before they are read."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tiny_gpt.run.checkpoint import read_tensors, write_tensors
from tiny_gpt.run.checkpoint_store import DamagedError


def test_tensors_round_trip_through_the_library(tmp_path):
    torch.manual_seed(0)
    tensors = {"a": torch.randn(3, 5), "b": torch.tensor(math.nan), "c.d": torch.randn(7, 1).T, "empty": torch.zeros(0)}
    with open(tmp_path / "ours", "wb") as file:
        write_tensors(file, tensors)
    read = load_file(tmp_path / "ours")
    assert read.keys() == tensors.keys()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs")
    into = {name: torch.ones_like(tensor) for name, tensor in tensors.items()}
    read_tensors(tmp_path / "theirs", into)
    for found in (read, into):
        assert all(torch.equal(found[n].nan_to_num(9.0), tensor.nan_to_num(9.0)) for n, tensor in tensors.items())


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"a": torch.zeros(2, 3)}, "does not fit the model (b)"),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(5)}, "does not fit the model (b)"),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(4), "c": torch.zeros(1)}, "does not fit the model (c)"),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.float64)}, "does not fit the model (b)"),
    ],
)
def test_unexpected_tensors_are_refused_before_any_is_read(tmp_path, other, words):
    save_file(other, tmp_path / "other")
    into = {"a": torch.ones(2, 3), "b": torch.ones(4)}
    with pytest.raises(DamagedError) as refused:
        read_tensors(tmp_path / "other", into)
    assert words in str(refused.value) and all(tensor.eq(1).all() for tensor in into.values())


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("tensors") / "x"
    path.write_bytes(content)
    with pytest.raises(DamagedError):
        read_tensors(path, {"a": torch.zeros(1)})


def test_a_huge_header_is_refused_unread(tmp_path):
    (tmp_path / "x").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(DamagedError, match=r"header of 1,099,511,627,776 bytes"):
        read_tensors(tmp_path / "x", {})
