"""Folders that transformers wrote become our model files and compute the same; what would not is refused in a line."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as LibraryTokenizer
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tiny_gpt import files
from tiny_gpt.cli.main import main
from tiny_gpt.errors import BadInputError
from tiny_gpt.export.tokenizer_json import tokenizer_json
from tiny_gpt.model_io.hf_folder import is_folder, read_folder
from tiny_gpt.model_io.model_file import LoadedModel, load_model
from tiny_gpt.tokenizer.base import BpeTokenizer, ByteTokenizer, CharTokenizer

transformers.utils.logging.disable_progress_bar()

CPU = torch.device("cpu")
N_IDS = 256
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = dict(
    vocab_size=N_IDS,
    n_positions=24,
    n_embd=12,
    n_layer=2,
    n_head=3,
    bos_token_id=None,
    eos_token_id=None,
    attn_pdrop=0.2,
)
QWEN3 = dict(
    vocab_size=N_IDS,
    hidden_size=16,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    max_position_embeddings=24,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    tie_word_embeddings=True,
)

# As SmolLM2's config.json, but for its size; head_dim is left to the library.
LLAMA = dict(
    vocab_size=N_IDS,
    hidden_size=18,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=3,
    num_key_value_heads=1,
    max_position_embeddings=24,
    rms_norm_eps=1e-5,
    rope_parameters={"rope_type": "default", "rope_theta": 1e5},
    tie_word_embeddings=True,
)
TINY_LLAMA = dict(
    hidden_size=16, num_attention_heads=4, num_key_value_heads=2, rope_parameters=None, tie_word_embeddings=False
)


def random_weights(model: Any) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def gpt2(**changes: Any) -> Any:
    return random_weights(GPT2LMHeadModel(GPT2Config(**GPT2 | changes)))


def qwen3(**changes: Any) -> Any:
    return random_weights(Qwen3ForCausalLM(Qwen3Config(**QWEN3 | changes)))


def llama(**changes: Any) -> Any:
    return random_weights(LlamaForCausalLM(LlamaConfig(**LLAMA | changes)))


def saved(model: Any, folder: Path, **options: Any) -> Path:
    """The folder as `save_pretrained` writes it, with a tokenizer."""
    model.save_pretrained(folder, **options)
    (folder / "tokenizer.json").write_text(tokenizer_json(ByteTokenizer()), encoding="utf-8")
    return folder


def edit(path: Path, **changes: Any) -> None:
    """Replace values in a JSON file; those that are ... are taken out."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))


def imported(folder: Path) -> LoadedModel:
    """By the command, and from the file that it wrote."""
    assert main(["import", str(folder), "--out", str(folder.parent / "imported.pt")]) == 0
    return load_model(folder.parent / "imported.pt", CPU)


SOURCES: dict[str, Callable[[Path], object]] = {
    "gpt2, tied": lambda folder: saved(gpt2(), folder),
    "gpt2, untied": lambda folder: saved(gpt2(tie_word_embeddings=False, n_inner=30), folder),
    "gpt2 without the head's class": lambda folder: saved(random_weights(GPT2Model(GPT2Config(**GPT2))), folder),
    "gpt2 in fp16": lambda folder: saved(gpt2().half(), folder),
    "qwen3, grouped heads of their own width, bf16": lambda folder: saved(qwen3().bfloat16(), folder),
    "qwen3, untied": lambda folder: saved(qwen3(tie_word_embeddings=False, num_key_value_heads=4), folder),
    "qwen3 with one head of keys": lambda folder: saved(qwen3(num_key_value_heads=1, head_dim=4), folder),
    "qwen3 in many files": lambda folder: saved(qwen3(), folder, max_shard_size="4KB"),
    "llama, tied, grouped heads, bf16, as SmolLM2": lambda folder: saved(llama().bfloat16(), folder),
    "llama, untied, grouped heads, as TinyLlama": lambda folder: saved(llama(**TINY_LLAMA), folder),
    "llama with head_dim": lambda folder: saved(llama(head_dim=10, num_key_value_heads=3), folder),
    "gpt2 with padded rows": lambda folder: saved(gpt2(vocab_size=N_IDS + 8), folder),
}


@pytest.mark.parametrize("name", SOURCES)
def test_an_imported_model_computes_what_transformers_does(tmp_path: Path, name: str, capsys) -> None:
    SOURCES[name](tmp_path / "model")
    loaded = imported(tmp_path / "model")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) == (1 if "many files" not in name else 7)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    ids_BT = torch.randint(N_IDS, (3, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids_BT).logits[..., :N_IDS]
        assert expected.std() > 0.1
        assert (loaded.model(ids_BT) - expected).abs().max() <= 1e-4
    assert loaded.tokenizer.to_dict() == {"type": "byte"} and loaded.progress.step == 0
    assert loaded.run_config["imported_from"] == "model"
    assert ("8 rows of the embedding" in capsys.readouterr().out) == ("padded" in name)


def test_the_settings_come_along(tmp_path: Path) -> None:
    config = read_folder(saved(qwen3(), tmp_path / "qwen3"), CPU).model.config
    assert (config.n_head, config.dim_per_head, config.rope_theta, config.block_size) == (4, 6, 1e6, 24)
    assert read_folder(saved(gpt2(), tmp_path / "gpt2"), CPU).model.config.dropout == 0.2


def test_what_llamas_config_leaves_out_is_as_in_transformers(tmp_path: Path) -> None:
    folder = saved(llama(num_key_value_heads=3), tmp_path / "model")
    edit(folder / "config.json", head_dim=..., num_key_value_heads=..., attention_bias=..., mlp_bias=...)
    config = read_folder(folder, CPU).model.config
    assert (config.dim_per_head, config.rope_theta, config.traits.norm_eps) == (6, 1e5, 1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(rms_norm_eps=1e-6), "rms_norm_eps is 1e-06, but tiny_gpt supports only 1e-05"),
        (dict(rms_norm_eps=...), "rms_norm_eps is 1e-06, but tiny_gpt supports only 1e-05"),
        (dict(mlp_bias=True), "mlp_bias is True"),
        (dict(attention_bias=True), "attention_bias is True"),
        (dict(pretraining_tp=2), "pretraining_tp is 2"),
        (dict(rope_scaling={"rope_type": "llama3", "factor": 8.0}), "rope_scaling is "),
    ],
)
def test_what_our_llama_would_compute_otherwise_is_refused(tmp_path: Path, changes: Any, words: str) -> None:
    folder = saved(llama(), tmp_path / "model")
    edit(folder / "config.json", **changes)
    with pytest.raises(BadInputError, match=words) as error:
        read_folder(folder, CPU)
    assert error.value.code == "hf-setting-unsupported"


def test_the_older_place_of_rope_theta_is_read_too(tmp_path: Path) -> None:
    folder = saved(qwen3(), tmp_path / "model")
    edit(folder / "config.json", rope_parameters=..., rope_theta=1e6, rope_scaling=None)
    assert read_folder(folder, CPU).model.config.rope_theta == 1e6


def test_constants_that_old_files_hold_are_passed_over(tmp_path: Path) -> None:
    folder = saved(gpt2(), tmp_path / "model")
    weights = gpt2().state_dict() | {"h.0.attn.bias": torch.ones(1, 1, 24, 24), "h.0.attn.masked_bias": torch.ones(())}
    del weights["lm_head.weight"]
    write_weights(folder, weights)
    read_folder(folder, CPU)


# --- tokenizers ---


def bpe_library(**steps: Any) -> LibraryTokenizer:
    library = LibraryTokenizer.from_str(
        BpeTokenizer.train(["the cat, the hat; é is 日本語\n" * 20], 300).to_dict()["tokenizer_json"]
    )
    for name, step in steps.items():
        setattr(library, name, step)
    return library


def with_tokenizer(folder: Path, library: LibraryTokenizer) -> Path:
    saved(gpt2(vocab_size=library.get_vocab_size()), folder)
    library.save(str(folder / "tokenizer.json"))  # with spaces and line ends, as people share them
    return folder


def test_a_tokenizer_like_qwens_gives_the_same_ids_and_tells_what_was_left_out(tmp_path: Path, capsys) -> None:
    cut = [pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    library = bpe_library(normalizer=normalizers.NFC(), pre_tokenizer=pre_tokenizers.Sequence(cut))
    library.add_special_tokens([AddedToken("<|endoftext|>", normalized=False)])
    loaded = imported(with_tokenizer(tmp_path / "model", library))
    assert "NFC" in capsys.readouterr().out
    for text in ("The cat's  hat\r\n", "é<|endoftext|>日本 123", ""):
        assert loaded.tokenizer.encode(text).tolist() == library.encode(text).ids
    assert loaded.tokenizer.decode_bytes(loaded.tokenizer.encode("e\u0301").tolist()).decode() == "e\u0301"


def test_gpt2s_older_files_are_read_as_the_tokenizer_that_they_describe(tmp_path: Path) -> None:
    library = bpe_library()
    library.add_special_tokens([AddedToken("<|endoftext|>")])
    folder = with_tokenizer(tmp_path / "model", library)
    (folder / "tokenizer.json").unlink()
    model = json.loads(library.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(library.get_vocab()))
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    loaded = imported(folder)
    for text in ("the cat, the  hat\n", "é<|endoftext|>the", "#version"):
        assert loaded.tokenizer.encode(text).tolist() == library.encode(text).ids


def test_merges_in_the_older_spelling_are_read(tmp_path: Path) -> None:
    folder = with_tokenizer(tmp_path / "model", bpe_library())
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["model"]["merges"] = [" ".join(pair) for pair in settings["model"]["merges"]]
    del settings["model"]["ignore_merges"], settings["model"]["byte_fallback"]
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    assert read_folder(folder, CPU).tokenizer.encode("the cat").tolist() == bpe_library().encode("the cat").ids


@pytest.mark.parametrize(
    "tokenizer", [ByteTokenizer(), CharTokenizer("é日🙂"), CharTokenizer("".join(map(chr, range(128, 900))))]
)
def test_what_transformers_saved_again_of_ours_is_still_ours(tmp_path: Path, tokenizer: Any) -> None:
    folder = saved(gpt2(vocab_size=tokenizer.vocab_size), tmp_path / "model")
    (folder / "tokenizer.json").write_text(tokenizer_json(tokenizer), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    assert read_folder(folder, CPU).tokenizer.to_dict() == tokenizer.to_dict()


# --- what is refused ---


def write_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file({name: weight.clone().contiguous() for name, weight in weights.items()}, folder / "model.safetensors")


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", **changes)


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        change(found)
        write_weights(folder, found)

    return damage


def content(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def header(text: bytes, n_bytes: int = 0) -> Callable[[Path], object]:
    return content("model.safetensors", struct.pack("<Q", n_bytes or len(text)) + text)


def without(*names: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def index(weight_map: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return damage


def tokenizer(library: Any) -> Callable[[Path], object]:
    return lambda folder: library.save(str(folder / "tokenizer.json"))


def instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return damage


def cut_short(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 5)


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


HOLE = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}' + bytes(12)
HUGE = b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}' + bytes(4)
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (without("config.json"), "config.json is missing"),
    "a config that is no JSON": (content("config.json", b"{"), "config.json is not JSON"),
    "a config that is a list": (content("config.json", b"[]"), "does not hold an object"),
    "a config of 2 MB": (content("config.json", b" " * (2 << 20)), "is larger than"),
    "a config 100,000 deep": (content("config.json", b'{"a":' * 100_000), "is not JSON"),
    "a config in Latin-1": (content("config.json", b'{"\xe9": 1}'), "is not UTF-8"),
    "another model": (
        config(model_type="gemma"),
        "model_type is 'gemma', but tiny_gpt supports only gpt2 or qwen3 or llama. Gemma has norms that multiply by 1",
    ),
    "Gemma 3": (config(model_type="gemma3_text"), "layers with a window and another RoPE base"),
    "a model type of control characters": (config(model_type="\x1b]0;owned\x07" * 999), "model_type is "),
    "no model type": (config(model_type=...), "model_type is None"),
    "a model type that is a list": (config(model_type=[]), "model_type is []"),
    "10^9 layers": (config(num_hidden_layers=10**9, layer_types=...), "has 1000000000 layers, but there are only"),
    "10^30 layers": (config(num_hidden_layers=10**30), "num_hidden_layers is 10000"),
    "no layers": (config(num_hidden_layers=0), "num_hidden_layers is 0"),
    "layers that are true": (config(num_hidden_layers=True), "num_hidden_layers is True"),
    "a width that is a text": (config(hidden_size="16"), "hidden_size is '16'"),
    "a width of 2^30": (config(hidden_size=2**30), "the weights do not fit the settings"),
    "a block of 2^30": (config(max_position_embeddings=2**30), "is too long for such a small model"),
    "heads that do not divide": (config(num_key_value_heads=3), "which does not divide num_attention_heads 4"),
    "an odd head": (config(head_dim=5), "must be even"),
    "no head width": (config(head_dim=...), "head_dim is None"),
    "another activation": (config(hidden_act="gelu"), "hidden_act is 'gelu', but tiny_gpt supports only silu"),
    "another epsilon": (config(rms_norm_eps=1e-5), "rms_norm_eps is 1e-05, but tiny_gpt supports only 1e-06"),
    "biases": (config(attention_bias=True), "attention_bias is True"),
    "a sliding window": (config(use_sliding_window=True), "use_sliding_window is True"),
    "a layer with a window": (config(layer_types=["sliding_attention"] * 2), "layer_types is "),
    "stretched positions": (config(rope_parameters={"rope_type": "yarn", "factor": 4.0}), "rope_parameters is "),
    "stretched positions, older": (config(rope_scaling={"type": "linear", "factor": 2.0}), "rope_scaling is "),
    "stretched positions by kind": (config(rope_parameters={"rope_type": "dynamic"}), "rope_type is 'dynamic'"),
    "two thetas": (config(rope_theta=5.0), "rope_theta is both 5.0 and 1000000.0"),
    "a theta of infinity": (config(rope_parameters={"rope_theta": float("inf")}), "rope_theta is inf"),
    "a dropout of 2": (config(attention_dropout=2), "must be at least 0 and below 1"),
    "quantized weights": (config(quantization_config={"bits": 4}), "quantization_config is "),
    "a tie that is a text": (config(tie_word_embeddings="no"), "tie_word_embeddings is 'no'"),
    "no head though untied": (config(tie_word_embeddings=False), "lm_head.weight should be 256 x 16 and is absent"),
    "weights cut short": (cut_short, "truncated or damaged"),
    "no bytes": (content("model.safetensors", b""), "is not a safetensors file"),
    "a web page": (content("model.safetensors", b"<!DOCTYPE html>" * 99), "is not a safetensors file"),
    "a header of 2^60 bytes": (header(b"{}", 1 << 60), "its header would have"),
    "a hole between weights": (header(HOLE, len(HOLE) - 12), "is not a safetensors file"),
    "a weight of 2^64 numbers": (header(HUGE, len(HUGE) - 4), "is not a safetensors file"),
    "a pickle": (only_a_pickle, "can run code when it is read; convert it"),
    "no weights": (without("model.safetensors"), "has no model.safetensors"),
    "a weight less": (weights(lambda found: found.pop("model.norm.weight")), "norm.weight should be 16 and is absent"),
    "a weight more": (weights(lambda found: found.update({"evil\x1b": torch.ones(2)})), "evil? should be absent"),
    "a weight twice": (weights(lambda found: found.update({"norm.weight": torch.ones(16)})), "occurs twice"),
    "whole numbers": (weights(lambda found: found.update({"model.norm.weight": torch.ones(16).int()})), "is I32"),
    "a file beyond the folder": (index({"a": "../part.safetensors"}), "is not a safetensors file in this folder"),
    "a file of another kind": (index({"a": "pytorch_model.bin"}), "is not a safetensors file in this folder"),
    "a file that is missing": (index({"a": "b.safetensors"}), "b.safetensors is missing"),
    "an index of nothing": (index({}), "names no files"),
    "an index that is a list": (index(["part.safetensors"]), "names no files"),
    "no tokenizer": (without("tokenizer.json"), "has no tokenizer.json, nor vocab.json with merges.txt"),
    "words": (tokenizer(LibraryTokenizer(models.WordLevel({"a": 0}, unk_token="a"))), "tokenizer.json: "),
    "more ids than rows": (tokenizer(bpe_library()), "they do not belong together"),
    "a tokenizer that lowers": (tokenizer(bpe_library(normalizer=normalizers.Lowercase())), "of type 'Lowercase'"),
    "a pattern without end": (
        tokenizer(bpe_library(pre_tokenizer=pre_tokenizers.Split(Regex("(a+)+b"), "isolated"))),
        "splits by a pattern that may take forever",
    ),
    "a tokenizer of lists": (content("tokenizer.json", b"[" + b"[]," * 5_000_000 + b"[]]"), "holds more than"),
    "an empty tokenizer": (content("tokenizer.json", b"{}"), "it has no model"),
    "a tokenizer of texts": (
        content("tokenizer.json", b'{"model": {"vocab": "a", "merges": "b"}}'),
        "tokenizer.json: ",
    ),
    "ids that are texts": (content("tokenizer.json", b'{"model": {"vocab": {"a": "0"}, "merges": []}}'), "has no id"),
}
if os.name != "nt":
    REFUSED |= {
        "a config that is a pipe": (instead("config.json", os.mkfifo), "config.json is missing, or no file"),
        "weights that never end": (
            instead("model.safetensors", lambda path: path.symlink_to("/dev/zero")),
            "has no model.safetensors",
        ),
    }


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> Path:
    return saved(qwen3(), tmp_path_factory.mktemp("honest") / "model")


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_damaged_or_unsupported_is_refused_in_a_line(honest: Path, tmp_path: Path, name: str, capsys) -> None:
    damage, words = REFUSED[name]
    folder = tmp_path / "model"
    folder.mkdir()
    for path in honest.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    damage(folder)
    with pytest.raises(BadInputError) as caught:
        read_folder(folder, CPU)
    message = str(caught.value)
    assert words in message and message.isprintable() and len(message) < 400
    assert main(["import", str(folder), "--out", str(tmp_path / "out.pt")]) == 3
    assert capsys.readouterr().err == f"error: {message}\n" and [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(activation_function="relu"), "activation_function is 'relu', but tiny_gpt supports only gelu_new or"),
        (dict(layer_norm_epsilon=1e-6), "layer_norm_epsilon is 1e-06, but tiny_gpt supports only 1e-05"),
        (dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx is True"),
        (dict(scale_attn_weights=False), "scale_attn_weights is False"),
        (dict(add_cross_attention=True), "add_cross_attention is True"),
        (dict(n_head=5), "not divisible"),
        (dict(n_positions=25), "wpe.weight should be 25 x 12 and is 24 x 12"),
        (dict(vocab_size=257), "wte.weight should be 257 x 12 and is 256 x 12"),
    ],
)
def test_what_our_gpt2_would_compute_otherwise_is_refused(tmp_path: Path, changes: Any, words: str) -> None:
    folder = saved(gpt2(), tmp_path / "model")
    edit(folder / "config.json", **changes)
    with pytest.raises(BadInputError) as caught:
        read_folder(folder, CPU)
    assert words in str(caught.value)


# --- the command ---


def test_the_command_tells_what_it_wrote_and_leaves_what_is_there_alone(
    honest: Path, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["import", str(honest)]) == 0
    assert "model.pt: qwen3, " in capsys.readouterr().out
    before = (tmp_path / "model.pt").read_bytes()
    assert main(["import", str(honest)]) == 2
    assert "model.pt is there already" in capsys.readouterr().err and (tmp_path / "model.pt").read_bytes() == before
    assert main(["import", "nowhere"]) == 3 and "nowhere is no folder" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(honest: Path, tmp_path: Path, fill_disk, capsys) -> None:
    fill_disk(files, 1000)
    assert main(["import", str(honest), "--out", str(tmp_path / "out.pt")]) == 5
    assert "no space left to write" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_folders_are_told_apart(honest: Path, tmp_path: Path) -> None:
    assert is_folder(honest)
    assert not is_folder(tmp_path) and not is_folder(honest / "config.json") and not is_folder(tmp_path / "nothing")
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text('{"n_layer": 4}')
    assert not is_folder(tmp_path)
