"""Settings, weights and figures that do not fit one another."""

from dataclasses import asdict

import torch

from tests.model_io.untrusted.honest import ESCAPE, MODEL, QWEN3, archive, later, members, of_parts, parts
from tiny_gpt.model_io.stored_model import FORMAT


def dimensions(config=MODEL, **changes):
    return of_parts(config=config, model_config=asdict(config) | changes)


def weights_but(change):
    def write(path):
        content = parts()
        change(content["weights"])
        path.write_bytes(archive(members(content)))

    return write


DIMENSIONS = {
    "10^9 layers": dimensions(n_layer=10**9),
    "2^2000 layers": dimensions(n_layer=2**2000),
    "no layers": dimensions(n_layer=0),
    "-1 layers": dimensions(n_layer=-1),
    "true layers": dimensions(n_layer=True),
    "1.0 layers": dimensions(n_layer=1.0),
    "a block of 10^12": dimensions(block_size=10**12),
    "a block of 10^12, not in the file": dimensions(QWEN3, block_size=10**12),
    "a block of 10^7, not in the file": dimensions(QWEN3, block_size=10**7),
    "d_model 2^40": dimensions(d_model=2**40),
    "d_ff 2^40": dimensions(d_ff=2**40),
    "d_ff one too large": dimensions(d_ff=17),
    "2^62 heads": dimensions(n_head=2**62),
    "no heads": dimensions(n_head=0),
    "heads of odd width": dimensions(QWEN3, n_head=8),
    "heads of a width of 2^40": dimensions(QWEN3, head_dim=2**40),
    "heads of another width": dimensions(QWEN3, head_dim=6),
    "heads of negative width": dimensions(QWEN3, head_dim=-4),
    "heads of gpt2 with a width of their own": dimensions(head_dim=4),
    "rotary positions by nothing": dimensions(QWEN3, rope_theta=0.0),
    "rotary positions by NaN": dimensions(QWEN3, rope_theta=float("nan")),
    "dropout NaN": dimensions(dropout=float("nan")),
    "dropout of 10^400": dimensions(dropout=10**400),
    "dropout a text": dimensions(dropout="0.1"),
    "an architecture of control characters": dimensions(architecture=ESCAPE * 1000),
    "the other architecture": dimensions(architecture="qwen3"),
    "a setting more": dimensions(**{ESCAPE: 1}),
    "a setting less": of_parts(model_config={"n_layer": 1}),
    "10,000 settings": of_parts(model_config={f"n_layer{i}": i for i in range(10_000)}),
    "a setting that is a weight": of_parts(model_config=asdict(MODEL) | {"n_layer": (1,) * 1000}),
    "a weight less": weights_but(lambda weights: weights.pop("norm.bias")),
    "a weight more": weights_but(lambda weights: weights.update({"evil": torch.zeros(1)})),
    "a weight of another name": weights_but(lambda weights: weights.update({ESCAPE: weights.pop("norm.bias")})),
    "a weight of another shape": weights_but(lambda weights: weights.update({"norm.bias": torch.zeros(8, 1)})),
    "a text as weight": weights_but(lambda weights: weights.update({"norm.bias": "a"})),
    "a dict as weight": weights_but(lambda weights: weights.update({"head.weight": {"a": 1}})),
    "a flat head": weights_but(lambda weights: weights.update({"head.weight": torch.zeros(2048)})),
    "no weights": of_parts(weights={}),
    "7,001 weights of 583 layers": lambda path: path.write_bytes(
        archive(
            members(
                parts(
                    model_config=asdict(MODEL) | {"n_layer": 583},
                    weights={f"blocks.{i}.norm1.weight": torch.zeros(1) for i in range(7001)},
                )
            )
        )
    ),
}


PROGRESS = parts()["progress"]


def progress(**changes):
    return of_parts(progress=PROGRESS | changes)


METADATA = {
    "loss NaN": progress(val_loss=float("nan")),
    "loss infinite": progress(train_loss=float("inf")),
    "loss a text": progress(val_loss=ESCAPE * 1000),
    "loss none": progress(val_loss=None),
    "loss a tensor": progress(val_loss=torch.zeros(())),
    "step a fraction": progress(step=1.5),
    "step true": progress(step=True),
    "step negative": progress(step=-1),
    "step 2^2000": progress(step=2**2000),
    "progress of something else": progress(__class__="evil"),
    "progress empty": of_parts(progress={}),
    "a setting in a setting": of_parts(run_config={"a": {"b": 1}}),
    "a setting of tuples of tuples": of_parts(run_config={"data": (("a",),)}),
    "a setting of 5 million characters": later(lambda: of_parts(run_config={"data": ESCAPE * 500_000})),
    "a name of 5 million characters": later(lambda: of_parts(run_config={ESCAPE * 500_000: 1})),
    "2,000 settings": of_parts(run_config={str(i): i for i in range(2000)}),
    "a setting 2^2000": of_parts(run_config={"seed": 2**2000}),
    "another format": of_parts(format=ESCAPE),
    "a format that is a tuple": of_parts(format=(FORMAT,)),
    "a version of control characters": of_parts(format_version=ESCAPE * 1000),
    "a version of 600 digits": of_parts(format_version=10**600),
    "a version that is a tuple": of_parts(format_version=(1,)),
    "parts that are texts": of_parts(progress="a", run_config="b", tokenizer="c", weights="d"),
}
