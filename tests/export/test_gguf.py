"""GGUF files hold our weights and our tokenizer, and llama.cpp computes from them what we do.

The slow tests take llama.cpp itself: `pip install llama-cpp-python==0.3.36` compiles it, which takes ten minutes.
"""

import contextlib
import errno
import json
import sys
import unicodedata

import numpy as np
import pytest
import tokenizers
import torch
from gguf import GGUFReader, TokenType
from gguf.quants import dequantize
from tokenizers import models, pre_tokenizers

from tiny_gpt.config import ModelConfig
from tiny_gpt.config.architectures import ARCHITECTURES
from tiny_gpt.errors import BadInputError
from tiny_gpt.export.gguf import F16_FILE, MODELFILE, Q8_0_FILE, write_gguf
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io.model_file import LoadedModel
from tiny_gpt.model_io.stored_model import Progress
from tiny_gpt.tokenizer.bpe import BpeTokenizer
from tiny_gpt.tokenizer.byte_char import ByteTokenizer, CharTokenizer, to_utf8

TEXT = "The cat sat on the mat.\r\n  It's 1,234 “words” — naïve, it isn't! 中文 😀\n"


def odd_texts(n_texts, known="é中😀"):
    """Texts of pieces that tokenizers stumble over, the same every time. No code point is newer than Unicode 3.2:
    what is a letter or a digit depends on the version."""
    neighbors = [chr(ord(char) + step) for char in known for step in (-1, 1, 2, 64)]
    assigned = [chr(i) for i in range(0x110000) if unicodedata.ucd_3_2_0.category(chr(i)) not in ("Cn", "Cs")]
    odd = ["\r\n", "\n\n", " ", "  ", "     ", "\t", "\xa0", "\u3000", "\u2028", "\x00", "\x0b", "\x1f", "\x7f", "\x85"]
    odd += ["e\u0301\u0323", "👩\u200d🔬", "🏽", "🇫🇷", "\u200b", "\ufeff", " cat", " 5", " ...", " “"]
    odd += "▁ ▁▁x ÿ Ġ 日本語 한국 ไทย ٣ Ⅷ ß The don't I'LL 's x2 1234 !? — naïve _a $1.50".split()
    odd += r"\ \x41 \n <0x41> <s> </s> <|endoftext|> [EMPTY_3] <unk> [UNK_BYTE_0x41]".split()
    rng = np.random.default_rng(0)
    pools = [list(known), neighbors, assigned, odd, odd, [chr(i) for i in range(128)]]
    pools = [pool for pool in pools if pool]
    for _ in range(n_texts):
        chosen = [pools[i] for i in rng.integers(len(pools), size=rng.integers(1, 30))]
        yield "".join(pool[rng.integers(len(pool))] for pool in chosen)


TOKENIZERS = {
    "ascii": CharTokenizer(),
    "two bytes": CharTokenizer("éñßя"),
    "four bytes": CharTokenizer("é“—▁中文😀"),
    "byte": ByteTokenizer(),
    "bpe": BpeTokenizer.train(odd_texts(3_000), 1_000),
    "bpe without merges": BpeTokenizer.train([], 256),
}
SHAPES = {
    "tiny": dict(n_layer=1, n_head=1, d_model=32, d_ff=64, block_size=128),
    "small": dict(n_layer=2, n_head=3, d_model=96, d_ff=160, block_size=150),
    "guide": dict(n_layer=4, n_head=8, d_model=256, d_ff=1024, block_size=128),
}
# With rotary positions: heads whose widths do not add up to d_model, and another base of the angles.
ROTARY_SHAPES = SHAPES | {"small": SHAPES["small"] | dict(head_dim=64, rope_theta=500_000.0)}


def make_model(architecture, tokenizer, shape="tiny", **changes):
    """A model whose every weight is random, about as large as training makes them."""
    torch.manual_seed(0)
    shapes = ROTARY_SHAPES if ARCHITECTURES[architecture].positions == "rotary" else SHAPES
    model = GPT(ModelConfig(architecture=architecture, **shapes[shape] | changes), tokenizer.vocab_size)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * (0.1 if weight.ndim == 1 else 0.05))
    return LoadedModel(model.eval(), tokenizer, Progress(0, 0, 0.0, 0.0, 0.0), {})


def read(path):
    """The file's fields, and its tensors: name -> (type, values)."""
    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    values = {t.name: (t.tensor_type.name, dequantize(t.data, t.tensor_type)) for t in reader.tensors}
    return fields, values


def expected_tensors(model):
    """The weights by llama.cpp's names, spelled out once more."""
    weights = {name: weight.numpy() for name, weight in model.state_dict().items()}
    expected = {"token_embd.weight": weights.pop("token_embedding.weight"), "output.weight": weights.pop("head.weight")}
    if model.config.traits.positions == "learned":
        expected["position_embd.weight"] = weights.pop("position_embedding.weight")
    names = {"norm1": "attn_norm", "norm2": "ffn_norm", "attention.out": "attn_output", "attention.qkv": "attn_qkv"}
    names |= {"attention.q_norm": "attn_q_norm", "attention.k_norm": "attn_k_norm"}
    names |= {"mlp.gate": "ffn_gate", "mlp.up": "ffn_up", "mlp.down": "ffn_down"}
    for name, weight in weights.items():
        part, kind = name.rsplit(".", 1)
        if part == "norm":
            expected[f"output_norm.{kind}"] = weight
            continue
        _, layer, part = part.split(".", 2)
        expected[f"blk.{layer}.{names[part]}.{kind}"] = weight
    if model.config.architecture != "gpt2":
        n_head, head_dim = model.config.n_head, model.config.dim_per_head
        for layer in range(model.config.n_layer):
            qkv = expected.pop(f"blk.{layer}.attn_qkv.weight")
            for letter, part in zip("qkv", np.split(qkv, 3), strict=True):
                expected[f"blk.{layer}.attn_{letter}.weight"] = part
                if model.config.architecture == "llama" and letter in "qk":  # rows 0, K/2, 1, K/2 + 1, ... of each head
                    order = [i + half for i in range(head_dim // 2) for half in (0, head_dim // 2)]
                    rows = [head * head_dim + i for head in range(n_head) for i in order]
                    expected[f"blk.{layer}.attn_{letter}.weight"] = part[rows]
    return expected


@pytest.mark.parametrize("shape", ["tiny", "small"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_weight_is_ours_within_its_type_s_rounding(architecture, shape, tmp_path):
    loaded = make_model(architecture, TOKENIZERS["ascii"], shape)
    write_gguf(loaded, tmp_path)
    expected = expected_tensors(loaded.model)
    for file, kind in ((F16_FILE, "F16"), (Q8_0_FILE, "Q8_0")):
        _, tensors = read(tmp_path / file)
        assert tensors.keys() == expected.keys()
        for name, ours in expected.items():
            stored_as, theirs = tensors[name]
            if ours.ndim == 1 or name == "position_embd.weight":
                assert stored_as == "F32" and np.array_equal(theirs, ours)
                continue
            assert stored_as == kind and theirs.shape == ours.shape
            if kind == "F16":
                assert np.array_equal(theirs, ours.astype(np.float16).astype(np.float32))
            else:  # half a step of a 127th of the block's largest, and that step is rounded to 16 bits
                largest = np.abs(ours.reshape(-1, 32)).max(axis=1, keepdims=True)
                errors = np.abs(theirs - ours).reshape(-1, 32)
                assert (errors <= largest * (1 / 254 + 2**-11) + 127 * 2**-25).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_settings_are_the_model_s(architecture, tmp_path):
    loaded = make_model(architecture, TOKENIZERS["byte"], "small")
    write_gguf(loaded, tmp_path)
    fields, _ = read(tmp_path / F16_FILE)
    settings = {n: v for n, v in fields.items() if not n.startswith(("GGUF.", "tokenizer.ggml.token"))}
    common = dict(context_length=150, block_count=2, embedding_length=96, feed_forward_length=160)
    attention = dict(head_count=3, head_count_kv=3)
    if architecture == "gpt2":
        arch, attention["layer_norm_epsilon"] = "gpt2", pytest.approx(1e-5)
    else:
        arch, common["rope.freq_base"] = architecture, 500_000.0
        epsilon = {"qwen3": 1e-6, "llama": 1e-5}[architecture]
        attention |= dict(key_length=64, value_length=64, layer_norm_rms_epsilon=pytest.approx(epsilon))
    assert settings == {
        "general.architecture": arch,
        "general.name": "tiny_gpt",
        "general.file_type": 1,
        "general.quantization_version": 2,
        **{f"{arch}.{name}": value for name, value in common.items()},
        **{f"{arch}.attention.{name}": value for name, value in attention.items()},
        "tokenizer.ggml.model": "rwkv",
        "tokenizer.ggml.bos_token_id": 255,
        "tokenizer.ggml.eos_token_id": 255,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
    }
    q8_0_fields, _ = read(tmp_path / Q8_0_FILE)
    assert q8_0_fields["general.file_type"] == 7


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_id_stands_for_the_same_bytes(name, tmp_path):
    fields, tokenizer = exported_tokenizer(name, tmp_path)
    tokens = fields["tokenizer.ggml.tokens"]
    assert [token_bytes(fields, token) for token in tokens] == [
        tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)
    ]
    assert fields["tokenizer.ggml.token_type"] == [TokenType.NORMAL] * len(tokens)
    for end in ("bos", "eos"):
        assert token_bytes(fields, tokens[fields[f"tokenizer.ggml.{end}_token_id"]]) == b"\xff"
    assert not any(fields[f"tokenizer.ggml.add_{what}"] for what in ("bos_token", "eos_token", "space_prefix"))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_the_file_says_gives_the_same_ids(name, tmp_path):
    """By an imitation of llama.cpp; the slow tests ask itself."""
    fields, tokenizer = exported_tokenizer(name, tmp_path)
    tokens = fields["tokenizer.ggml.tokens"]
    if fields["tokenizer.ggml.model"] == "gpt2":
        assert fields["tokenizer.ggml.pre"] == "gpt-2"
        merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
        vocab = {token: i for i, token in enumerate(tokens)}
        if merges == [("ÿ", "ÿ")]:  # which llama.cpp takes without a token for both
            vocab["ÿÿ"] = len(vocab)
        library = byte_level(vocab, merges)

        def encode(utf8):
            return library.encode(utf8.decode()).ids
    else:
        ids = {token_bytes(fields, token): i for i, token in enumerate(tokens)}

        def encode(utf8):
            found = []
            while utf8:
                longest = next(utf8[:n] for n in range(4, 0, -1) if utf8[:n] in ids)
                found.append(ids[longest])
                utf8 = utf8[len(longest) :]
            return found

    for text in odd_texts(300, getattr(tokenizer, "characters", "é")):
        assert encode(text.encode()) == tokenizer.encode(text).tolist(), text


def exported_tokenizer(name, folder):
    tokenizer = TOKENIZERS[name]
    write_gguf(make_model("gpt2", tokenizer), folder)
    return read(folder / F16_FILE)[0], tokenizer


def token_bytes(fields, token):
    """What llama.cpp writes for a token of the file."""
    if fields["tokenizer.ggml.model"] == "gpt2":
        plain = [*range(33, 127), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        alphabet = {chr(byte): byte for byte in plain}
        alphabet |= {chr(0x100 + i): byte for i, byte in enumerate(b for b in range(256) if b not in plain)}
        return bytes(alphabet[char] for char in token)
    return token.encode("latin-1").decode("unicode_escape").encode("latin-1") if token.isascii() else token.encode()


def byte_level(vocab, merges, **settings):
    library = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, **settings))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    return library


def test_widths_that_no_block_of_32_divides_are_written_as_f16_alone(tmp_path):
    lines = write_gguf(make_model("gpt2", TOKENIZERS["byte"], n_head=2, d_model=36), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [MODELFILE, F16_FILE]
    assert Q8_0_FILE in lines[0] and "32" in lines[0]
    fields, _ = read(tmp_path / F16_FILE)
    assert fields["gpt2.embedding_length"] == 36


def test_the_modelfile_passes_the_prompt_through_and_samples_as_we_do(tmp_path):
    lines = write_gguf(make_model("qwen3", TOKENIZERS["byte"]), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [MODELFILE, F16_FILE, Q8_0_FILE]
    assert [word in "\n".join(lines) for word in (F16_FILE, Q8_0_FILE, MODELFILE, "128 together")] == [True] * 4
    assert (tmp_path / MODELFILE).read_text().splitlines() == [
        "FROM ./model-f16.gguf",
        "TEMPLATE {{ .Prompt }}",
        "PARAMETER num_ctx 128",
        "PARAMETER num_predict 200",
        "PARAMETER temperature 0.8",
        "PARAMETER top_k 0",
        "PARAMETER top_p 1.0",
        "PARAMETER min_p 0",
        "PARAMETER repeat_penalty 1",
    ]


def brought(change):
    """A tokenizer of the library that `change` has been done to."""
    vocab = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    library = byte_level(vocab | {"th": 256}, [("t", "h")])
    change(library)
    return BpeTokenizer(library)


def cut_at_numbers(library):
    library.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(False), library.pre_tokenizer])


def ignore_merges(library):
    model = json.loads(library.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    library.model = models.BPE(vocab=model["vocab"], merges=merges, ignore_merges=True)


@pytest.mark.parametrize("change", [cut_at_numbers, ignore_merges])
def test_a_tokenizer_that_gguf_cannot_describe_is_refused(change, tmp_path):
    with pytest.raises(BadInputError, match="export hf instead"):
        write_gguf(make_model("qwen3", brought(change)), tmp_path)


def test_a_tokenizer_with_ids_that_have_no_token_keeps_its_ids(tmp_path):
    def leave_a_hole(library):
        vocab = json.loads(library.to_str())["model"]["vocab"]
        library.model = models.BPE(vocab=vocab | {"th": 258}, merges=[("t", "h")])

    tokenizer = brought(leave_a_hole)
    write_gguf(make_model("qwen3", tokenizer), tmp_path)
    fields, _ = read(tmp_path / F16_FILE)
    assert fields["tokenizer.ggml.tokens"][255:] == [fields["tokenizer.ggml.tokens"][255], "", "", "th"]
    assert fields["tokenizer.ggml.token_type"][255:] == [1, TokenType.UNUSED, TokenType.UNUSED, 1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e5])
def test_weights_that_16_bits_cannot_hold_are_refused(value, tmp_path):
    loaded = make_model("gpt2", TOKENIZERS["byte"])
    with torch.no_grad():
        loaded.model.head.weight[0, 0] = value
    with pytest.raises(BadInputError, match=r"head\.weight"):
        write_gguf(loaded, tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limit")
def test_a_full_disk_is_called_that(tmp_path):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            write_gguf(make_model("gpt2", TOKENIZERS["byte"]), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)


@pytest.fixture
def llama():
    """`llama(path)`: the file, opened by llama.cpp."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python compiles llama.cpp (minutes)")
    with contextlib.ExitStack() as stack:

        def load(path, **settings):
            model = llama_cpp.Llama(str(path), n_gpu_layers=0, n_threads=1, verbose=False, **settings)
            return stack.enter_context(contextlib.closing(model))

        yield load


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
def test_llama_cpp_gives_the_same_ids(name, tmp_path, llama):
    tokenizer = TOKENIZERS[name]
    write_gguf(make_model("gpt2", tokenizer), tmp_path)
    model = llama(tmp_path / F16_FILE, vocab_only=True)
    assert model.n_vocab() == tokenizer.vocab_size
    for text in odd_texts(1_000, getattr(tokenizer, "characters", "é")):
        ids = model.tokenize(text.encode(), add_bos=True, special=True)
        assert ids == tokenizer.encode(text).tolist(), text
        assert model.detokenize(ids) == text.encode()
    if name != "bpe":  # of which the newest letters and lone surrogates are not promised
        for start in range(0, 0x110000, 0x400):
            text = "".join(map(chr, range(start, start + 0x400)))
            assert model.tokenize(to_utf8(text), add_bos=True, special=True) == tokenizer.encode(text).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_llama_cpp_computes_the_same_logits(architecture, name, shape, tmp_path, llama):
    loaded = make_model(architecture, TOKENIZERS[name], shape)
    write_gguf(loaded, tmp_path)
    ids = np.random.default_rng(0).integers(loaded.model.vocab_size, size=128).tolist()
    ours = loaded.model(torch.tensor([ids]))[0].detach().numpy()
    model = llama(tmp_path / F16_FILE, n_ctx=128, logits_all=True)
    model.eval(ids[:100])
    for i in ids[100:]:
        model.eval([i])
    difference = np.abs(model.scores[:128] - ours).max()
    print(f"{architecture}, {name}, {shape}: {difference:.1e}, while they spread by {ours.std():.2f}")
    assert difference < 2e-2


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_llama_cpp_writes_the_same_text(architecture, name, shape, tmp_path, llama):
    """Greedy, from a model that has memorized one text, so that no two logits are nearly equal."""
    loaded = make_model(architecture, TOKENIZERS[name], shape, dropout=0.0)
    ids = torch.from_numpy(loaded.tokenizer.encode(TEXT * 10)[:120].astype(np.int64))
    learn(loaded.model, ids)
    assert torch.equal(loaded.model(ids[None])[0, 19:-1].argmax(-1), ids[20:]), "it has not learned"
    write_gguf(loaded, tmp_path)
    model = llama(tmp_path / F16_FILE, n_ctx=128, logits_all=True)
    model.eval(ids[:20].tolist())
    written = []
    for _ in range(100):
        written.append(int(model.scores[model.n_tokens - 1].argmax()))
        model.eval(written[-1:])
    assert written == ids[20:].tolist()


def learn(model, ids):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    while (loss := model.losses(ids[None, :-1], ids[None, 1:]).mean()) > 0.01:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
