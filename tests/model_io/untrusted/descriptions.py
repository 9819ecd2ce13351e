"""Pickles that want to run, or to take memory, and tensors that are not what they say."""

import collections
import os
import pickle
import struct

import torch

from tests.model_io.untrusted.honest import CANARY, Calling, Rebuilt, Stored, archive, later, members, of_parts, parts
from tiny_gpt.model_io.stored_model import FORMAT


def described(instructions):
    """A file with these instructions as its description."""
    return lambda path: path.write_bytes(archive(members(parts(), b"\x80\x02" + instructions)))


def within(instructions):
    """An honest description but for its run_config, which these instructions make."""

    def write(path):
        honest = members(parts(run_config="HERE"))
        description = honest["data.pkl"].replace(text("HERE"), instructions)
        path.write_bytes(archive(honest | {"data.pkl": description}))

    return write


def calling(function, *arguments):
    """An honest description but for its run_config, which calls something."""
    return of_parts(run_config=Calling(function, *arguments))


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<L", len(data)) + data


LAUGHS = text("a") + b"q\0" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(40))

PICKLE = {
    "os.system": calling(os.system, f"touch {CANARY}"),
    "os.mkdir": calling(os.mkdir, CANARY),
    "eval": calling(eval, f"open('{CANARY}', 'w')"),
    "exec": calling(exec, f"import os; os.mkdir('{CANARY}')"),
    "open for writing": calling(open, CANARY, "w"),
    "import": calling(__import__, "antigravity"),
    "pickle in a pickle": calling(pickle.loads, pickle.dumps(Calling(os.mkdir, CANARY))),
    "torch.load": calling(torch.load, "/dev/zero"),
    "a class by its names on the stack": described(b"\x8c\x02os\x8c\x05mkdir\x93" + text(CANARY) + b"\x85R."),
    "an instance of a class": described(b"(" + text(CANARY) + b"ios\nmkdir\n."),
    "an object with its state": of_parts(run_config=collections.Counter("abc")),
    "NEWOBJ": described(b"ctorch.nn.modules.linear\nLinear\n)\x81."),
    "BUILD": described(b"ccollections\nOrderedDict\n)R}" + text("__class__") + b"K\x01sb."),
    "a registered extension": described(b"\x82\x01."),
    "a persistent name": described(b"P../../etc/passwd\n."),
    "bytearray(10**10)": calling(bytearray, 10**10),
    "range": calling(list, range(10**9)),
    "torch.Size": of_parts(run_config={"size": torch.Size([2**62])}),
    "torch.zeros": calling(torch.zeros, 10**12),
    "a generator's state": of_parts(run_config={"rng": torch.Generator()}),
    "a dtype": of_parts(run_config={"dtype": torch.float32}),
    "bytes": of_parts(run_config={"bytes": b"a" * 100}),
    "a set": of_parts(run_config={"set": {1, 2}}),
    "memo place 2^31": described(b"}r\xff\xff\xff\x7f."),
    "memo place skipped": described(b"}q\x07."),
    "memo of nothing": described(b"q\x00."),
    "from an empty memo": described(b"h\x00."),
    "20 million lists": later(lambda: described(b"]" * 20_000_000 + b".")),
    "20 million dicts": later(lambda: described(b"}" * 20_000_000 + b".")),
    "20 million marks": later(lambda: described(b"(" * 20_000_000 + b".")),
    "a million texts": later(lambda: described(b"X\x01\0\0\0a" * 1_000_000 + b".")),
    "a tuple 200,000 deep": within(b"N" + b"\x85" * 200_000),
    "a dict 50,000 deep": within((b"}" + text("a")) * 50_000 + b"}" + b"s" * 50_000),
    "a tuple 200,000 deep in a dict": within(b"}" + text("a") + b"N" + b"\x85" * 200_000 + b"s"),
    "marks 100,000 deep": within(b"(" * 100_000 + b"t" * 100_000),
    "a setting that is a mark": within(b"}(" + text("a") + b"(ts"),
    "a setting that is a name": within(b"}" + text("a") + b"ctorch\nFloatStorage\ns"),
    "a setting that is a tensor's hooks": within(b"}" + text("a") + b"ccollections\nOrderedDict\n)Rs"),
    "2^40 references": described(LAUGHS + b"."),
    "a dict in itself": described(b"}q\0" + text("a") + b"h\0s."),
    "a number of a million digits": described(b"I" + b"9" * 1_000_000 + b"\n."),
    "a number of a million bytes": described(b"\x8b" + struct.pack("<L", 1_000_000) + b"\x7f" * 1_000_000 + b"."),
    "a text longer than the file": described(b"X\xff\xff\xff\x7fabc."),
    "a text of 2^62 bytes": described(b"\x8d" + struct.pack("<Q", 2**62) + b"abc."),
    "20 MB of text, 4 bytes a character": later(
        lambda: of_parts(run_config={"data": "a" * 20_000_000 + "\N{GRINNING FACE}"}, tokenizer={"type": "x"})
    ),
    "26 MB of description": later(lambda: described(text("a" * 26_000_000) + b".")),
    "a key twice": described(b"}" + (text("format") + b"K\x01s") * 2 + b"."),
    "a number as key": of_parts(run_config={1: 2}),
    "a dict as key": described(b"}}K\x01s."),
    "two values": described(b"K\x01K\x02."),
    "no value": described(b"."),
    "no end": described(b"}"),
    "nothing": lambda path: path.write_bytes(archive(members(parts(), b""))),
    "more behind the end": described(b"}.cos\nsystem\n(" + text("touch canary") + b"tR."),
    "a mark left over": described(b"(."),
    "POP": described(b"N0N."),
    "DUP": described(b"}2\x86."),
    "protocol 5": lambda path: path.write_bytes(archive(members(parts(), pickle.dumps({"format": FORMAT}, 5)))),
    "frames": described(b"\x95" + struct.pack("<Q", 2**62) + b"}."),
    "out-of-band buffers": described(b"\x97\x98."),
    "a text that is not UTF-8": described(b"X\x02\0\0\0\xff\xfe."),
    "no pickle": described(b"The cat sat on the mat."),
}


def with_weight(value):
    """One weight of the honest file is `value`, which may refer to its storage, "0"."""
    return lambda path: path.write_bytes(archive(members(parts(), instead={"token_embedding.weight": value})))


def saved(make):
    """torch.save's own file with one weight replaced."""

    def write(path):
        content = parts()
        content["weights"]["token_embedding.weight"] = make(content["weights"]["token_embedding.weight"])
        torch.save(content, path)

    return write


SHAPE, STRIDES, N = (256, 8), (8, 1), 2048
HUGE = 2**62

TENSORS = {
    "sparse": saved(lambda weight: weight.to_sparse()),
    "compressed sparse": saved(lambda weight: weight.to_sparse_csr()),
    "sparse of 2^62 rows": with_weight(
        Calling(torch._utils._rebuild_sparse_tensor, "torch.sparse_coo", (1, 1, (HUGE, HUGE), True))
    ),
    "nested": with_weight(Calling(torch._utils._rebuild_nested_tensor, 1, HUGE, HUGE, HUGE)),
    "quantized": with_weight(
        Calling(torch._utils._rebuild_qtensor, Stored("0", N), 0, SHAPE, STRIDES, (1, 2, 3), False, None)
    ),
    "meta": with_weight(Calling(torch._utils._rebuild_meta_tensor_no_storage, torch.float32, HUGE, 1, 0)),
    "from numpy": with_weight(Calling(torch._utils._rebuild_device_tensor_from_numpy, 1, 1, 2, False)),
    "a parameter": saved(lambda weight: torch.nn.Parameter(weight)),
    "complex": saved(lambda weight: weight.to(torch.complex64)),
    "whole numbers": saved(lambda weight: weight.to(torch.int32)),
    "fp64": saved(lambda weight: weight.double()),
    "bf16": saved(lambda weight: weight.bfloat16()),
    "learning": saved(lambda weight: weight.clone().requires_grad_()),
    "transposed": saved(lambda weight: weight.t().contiguous().t()),
    "a part of a larger one": saved(lambda weight: torch.zeros(300, 8)[:256]),
    "repeated by stride 0": saved(lambda weight: torch.zeros(1, 1).expand(256, 8)),
    "2^62 rows by stride 0": with_weight(Rebuilt(Stored("0", N), (HUGE, 8), (0, 0))),
    "negative strides": with_weight(Rebuilt(Stored("0", N), SHAPE, (-8, -1))),
    "a place inside": with_weight(Rebuilt(Stored("0", N), SHAPE, STRIDES, offset=1)),
    "a place before": with_weight(Rebuilt(Stored("0", N), SHAPE, STRIDES, offset=-100)),
    "hooks": with_weight(Rebuilt(Stored("0", N), SHAPE, STRIDES, hooks=collections.OrderedDict({0: "a"}))),
    "more numbers than bytes": with_weight(Rebuilt(Stored("0", 4 * N), (1024, 8), STRIDES)),
    "2^62 numbers": with_weight(Rebuilt(Stored("0", HUGE), (HUGE,), (1,))),
    "-2^62 numbers": with_weight(Rebuilt(Stored("0", -HUGE), (-HUGE,), (1,))),
    "a size that wraps around": with_weight(Rebuilt(Stored("0", N), (2**32, 2**32, N), (2**32, N, 1))),
    "no rows": with_weight(Rebuilt(Stored("0", N), (0, 8), STRIDES)),
    "negative rows": with_weight(Rebuilt(Stored("0", N), (-256, -8), STRIDES)),
    "100,000 dimensions": with_weight(Rebuilt(Stored("0", N), (1,) * 100_000, (1,) * 100_000)),
    "a shape of texts": with_weight(Rebuilt(Stored("0", N), ("256", "8"), STRIDES)),
    "two of one storage": with_weight(Rebuilt(Stored("1", 32), (4, 8), STRIDES)),
    "a storage that is not there": with_weight(Rebuilt(Stored("../data.pkl", N), SHAPE, STRIDES)),
    "a storage of bytes": with_weight(Rebuilt(Stored("0", N, torch.ByteStorage), SHAPE, STRIDES)),
    "an untyped storage": with_weight(Rebuilt(Stored("0", N, torch.UntypedStorage), SHAPE, STRIDES)),
    "a storage of storages": with_weight(Rebuilt(Stored(Stored("0", N), N), SHAPE, STRIDES)),
    "a storage alone": with_weight(Stored("0", N)),
}
