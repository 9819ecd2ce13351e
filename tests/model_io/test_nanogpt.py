"""Checkpoints of nanoGPT: made here by torch in nanoGPT's layout, computed by a reference forward written out below."""

import json
import math
import pickle
from pathlib import Path

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from torch.nn import functional as F

from tiny_gpt.cli.main import main
from tiny_gpt.errors import BadInputError
from tiny_gpt.model_io.model_file import load_model
from tiny_gpt.model_io.nanogpt import read_nanogpt

CPU = torch.device("cpu")
CHARACTERS = "\n !abcdefghiké"
ARGS = dict(n_layer=2, n_head=2, n_embd=16, block_size=12, vocab_size=len(CHARACTERS), dropout=0.1)


def checkpoint(path, bias, prefix="", vocab_size=None):
    """What nanoGPT's train.py saves: wte and the head are one tensor. Returns the weights."""
    torch.manual_seed(1)
    width, n = ARGS["n_embd"], vocab_size or len(CHARACTERS)
    shapes = {"transformer.wte.weight": (n, width), "transformer.wpe.weight": (ARGS["block_size"], width)}
    for layer in range(ARGS["n_layer"]):
        block = f"transformer.h.{layer}"
        shapes |= {f"{block}.ln_1.weight": (width,), f"{block}.attn.c_attn.weight": (3 * width, width)}
        shapes |= {f"{block}.attn.c_proj.weight": (width, width), f"{block}.ln_2.weight": (width,)}
        shapes |= {f"{block}.mlp.c_fc.weight": (4 * width, width), f"{block}.mlp.c_proj.weight": (width, 4 * width)}
    shapes["transformer.ln_f.weight"] = (width,)
    if bias:
        shapes |= {f"{n[:-7]}.bias": shape[:1] for n, shape in shapes.items() if ".h." in n or "ln_f" in n}
    weights = {name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}
    if bias:
        weights["transformer.ln_f.bias"] *= 5
    module = torch.nn.Module()
    state = type(module.state_dict())()
    state._metadata = {"": {"version": 1}}
    for name, weight in weights.items():
        state[prefix + name] = weight
    state[f"{prefix}lm_head.weight"] = weights["transformer.wte.weight"]
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([parameter], betas=(0.9, 0.95))
    parameter.sum().backward()
    optimizer.step()
    content = {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "model_args": ARGS | {"bias": bias, "vocab_size": n},
    }
    content |= {"iter_num": 5, "best_val_loss": torch.tensor(1.5), "config": {"dataset": "x", "compile": True}}
    torch.save(content, path)
    return weights


def reference(weights, ids_BT, approximate):
    """nanoGPT's model.py."""

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights.get(f"{name}.bias"), 1e-5)

    n_tokens, n_head = ids_BT.shape[1], ARGS["n_head"]
    x = weights["transformer.wte.weight"][ids_BT] + weights["transformer.wpe.weight"][:n_tokens]
    for layer in range(ARGS["n_layer"]):
        block = f"transformer.h.{layer}"
        q, k, v = (
            part.unflatten(-1, (n_head, -1)).transpose(1, 2)
            for part in linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn").chunk(3, -1)
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(torch.ones(n_tokens, n_tokens).triu(1).bool(), -math.inf)
        x = x + linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), f"{block}.attn.c_proj")
        hidden = F.gelu(linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc"), approximate=approximate)
        x = x + linear(hidden, f"{block}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ weights["transformer.wte.weight"].T


@pytest.fixture
def folder(tmp_path):
    meta = {"vocab_size": len(CHARACTERS), "itos": dict(enumerate(CHARACTERS)), "stoi": {}}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    return tmp_path


@pytest.mark.parametrize(("bias", "prefix"), [(True, ""), (False, "_orig_mod.")])
def test_logits_are_those_of_nanogpt(folder, bias, prefix):
    weights = checkpoint(folder / "ckpt.pt", bias, prefix)
    loaded = read_nanogpt(folder / "ckpt.pt", None, CPU)
    text = "abé ick a!\n"
    ids = torch.from_numpy(loaded.tokenizer.encode(text).astype("int64"))
    theirs = torch.tensor([CHARACTERS.index(c) for c in text])
    columns = [int(loaded.tokenizer.encode(c)[0]) for c in CHARACTERS]
    with torch.no_grad():
        ours_TV = loaded.model(ids[None])[0]
    torch.testing.assert_close(ours_TV[:, columns], reference(weights, theirs[None], "tanh")[0], rtol=1e-4, atol=1e-4)
    exact = reference(weights, theirs[None], "none")[0].softmax(-1)
    assert (ours_TV[:, columns].softmax(-1) - exact).abs().max() < 0.01
    unknown = [i for i in range(loaded.tokenizer.vocab_size) if i not in columns]
    if bias:  # a trained model's states have a common direction, as a bias gives these
        assert ours_TV.softmax(-1)[:, unknown].sum(-1).max() < 1e-3


def gpt2_like_vocabulary(folder, form):
    """A small vocabulary in the layout of GPT-2's: subwords of bytes, and <|endoftext|> last. Returns the library's own
    tokenizer of it."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(["the cat sat on the mat, and the dog in the café said: hello, hello!"] * 9, 290)
    trained.save_model(str(folder))
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    vocab["<|endoftext|>"] = len(vocab)
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    library = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    if form == "tokenizer.json":
        library.save(str(folder / "tokenizer.json"))
        (folder / "vocab.json").unlink()
        (folder / "merges.txt").unlink()
    return library


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.json and merges.txt"])
def test_tokens_of_gpt2_need_its_tokenizer(tmp_path, form, monkeypatch, capsys):
    """nanoGPT's own recipe: GPT-2's vocabulary, rows rounded up to a multiple of 64, and no meta.pkl."""
    vocabulary = tmp_path / "gpt2"
    vocabulary.mkdir()
    library = gpt2_like_vocabulary(vocabulary, form)
    n_rows = -(-library.get_vocab_size() // 64) * 64
    weights = checkpoint(tmp_path / "ckpt.pt", False, vocab_size=n_rows)
    monkeypatch.chdir(tmp_path)
    assert main(["import", "ckpt.pt"]) == 3 and "--tokenizer" in capsys.readouterr().err
    assert main(["import", "ckpt.pt", "--tokenizer", "gpt2", "--out", "mine.pt"]) == 0
    loaded = load_model(Path("mine.pt"), CPU)
    ids = torch.from_numpy(loaded.tokenizer.encode("the café said hello").astype("int64"))[None, : ARGS["block_size"]]
    assert ids[0].tolist() == library.encode("the café said hello").ids
    with torch.no_grad():
        ours_TV = loaded.model(ids)[0]
    expected_TV = reference(weights, ids, "tanh")[0][:, : ours_TV.shape[1]]
    assert ours_TV.shape[1] == library.get_vocab_size()
    torch.testing.assert_close(ours_TV, expected_TV, rtol=1e-4, atol=1e-4)


def test_command_writes_a_model_file(folder, monkeypatch, capsys):
    checkpoint(folder / "ckpt.pt", True)
    monkeypatch.chdir(folder)
    assert main(["import", "ckpt.pt", "--out", "mine.pt"]) == 0
    assert "tanh" in capsys.readouterr().out
    assert load_model(Path("mine.pt"), CPU).tokenizer.vocab_size == 257
    assert main(["import", "mine.pt"]) == 3 and "already" in capsys.readouterr().err


def refused(folder, code):
    with pytest.raises(BadInputError) as error:
        read_nanogpt(folder / "ckpt.pt", None, CPU)
    assert error.value.code == code


def test_what_is_no_checkpoint_is_refused(folder):
    weights = checkpoint(folder / "ckpt.pt", True)
    whole = (folder / "ckpt.pt").read_bytes()
    (folder / "ckpt.pt").write_bytes(whole[:-40])
    refused(folder, "nanogpt-unreadable")
    torch.save({"weights": weights}, folder / "ckpt.pt")
    refused(folder, "nanogpt-without-settings")
    torch.save({"model": weights, "model_args": ARGS | {"n_layer": 3}}, folder / "ckpt.pt")
    refused(folder, "hf-weights-do-not-fit")
    torch.save({"model": weights, "model_args": Path("x")}, folder / "ckpt.pt")
    refused(folder, "nanogpt-unreadable")
    (folder / "ckpt.pt").write_bytes(whole)
    (folder / "meta.pkl").write_bytes(pickle.dumps({"itos": {0: "a"}}))
    refused(folder, "nanogpt-meta-of-another-model")
    (folder / "meta.pkl").write_bytes(pickle.dumps(Path("x")))
    refused(folder, "nanogpt-meta-invalid")
    (folder / "meta.pkl").unlink()
    refused(folder, "nanogpt-without-tokenizer")
