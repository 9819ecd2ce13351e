"""An exported folder in transformers' hands: the same ids, the same logits, the same text; whole or absent."""

import itertools
import json
import math
import random
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from tiny_gpt.cli.export import ExportCommand, model_name
from tiny_gpt.cli.main import main
from tiny_gpt.config import CONFIG_FILE, ModelConfig, RunConfig, SampleConfig
from tiny_gpt.config.architectures import ARCHITECTURES
from tiny_gpt.errors import OutOfResourcesError, UsageError
from tiny_gpt.export import export as export_module
from tiny_gpt.export import huggingface as hf
from tiny_gpt.export.export import EXPORTERS, export
from tiny_gpt.export.huggingface import write_hf
from tiny_gpt.export.model_card import card
from tiny_gpt.inference.engine import engine_for
from tiny_gpt.inference.generate import stream
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io.hf_folder import read_folder
from tiny_gpt.model_io.model_file import LoadedModel, save_loaded
from tiny_gpt.model_io.stored_model import Progress
from tiny_gpt.tokenizer.base import BpeTokenizer, ByteTokenizer, CharTokenizer, Tokenizer

transformers.utils.logging.disable_progress_bar()

CPU = torch.device("cpu")
TEXT = "The cat sat on the mat, naïve as ever; 日本語 and 🙂 and e\u0301.\r\n" * 20
TOKENIZERS: dict[str, Tokenizer] = {
    "byte": ByteTokenizer(),
    "char": CharTokenizer.train([TEXT]),
    "bpe": BpeTokenizer.train([TEXT, "the theme of them there\n" * 5], 320),
}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": dict(n_layer=1, n_head=1, d_model=8, d_ff=12),
    "odd numbers": dict(n_layer=3, n_head=3, d_model=18, d_ff=50),
    "multiples of 64": dict(n_layer=2, n_head=2, d_model=128, d_ff=192),
}
ROTARY = {"odd numbers": dict(head_dim=10, rope_theta=50_000.0)}
CASES = list(itertools.product(ARCHITECTURES, TOKENIZERS, SIZES))
PROGRESS = Progress(step=1234, epoch=3, train_loss=1.25, val_loss=1.5, val_bits_per_byte=2.0625)


def random_model(architecture: Any, tokenizer: str = "char", size: str = "tiny") -> LoadedModel:
    """Every parameter random, also biases and norm weights, so that none can be left out unnoticed."""
    torch.manual_seed(0)
    settings = SIZES[size] | (ROTARY.get(size, {}) if ARCHITECTURES[architecture].positions == "rotary" else {})
    config = ModelConfig(architecture, block_size=128, **settings)
    model = GPT(config, TOKENIZERS[tokenizer].vocab_size).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger ones would make softmax so steep that rounding alone moves logits by more than the bounds below.
            alpha = min(0.3, 1.5 / math.sqrt(parameter.shape[-1]))
            parameter.add_(torch.randn_like(parameter), alpha=alpha)
    return LoadedModel(model, TOKENIZERS[tokenizer], PROGRESS, RunConfig(model=config).to_flat())


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def exported(request, tmp_path_factory) -> tuple[LoadedModel, Path]:
    loaded = random_model(*request.param)
    folder = tmp_path_factory.mktemp("exported") / "model"
    export(loaded, "hf", folder)
    return loaded, folder


def odd_strings(n: int) -> list[str]:
    """What tokenizers stumble over, joined at random; the same every time."""
    rng = random.Random(0)
    known = "ï日本語🙂\u0301"
    pieces = [
        *map(chr, [*range(32), *range(127, 161)]),
        *"\u2581\u2028\u200d\ufeff\ufffd\ufffe\U0010ffffĠĊÃ©Â",
        *(chr(ord(char) ^ bit) for char in known for bit in (1, 2, 32, 64)),  # unknown, with the first bytes of known
        *known,
        *(
            "the cat",
            "The",
            " ",
            "  ",
            " " * 50,
            "\n\n\n",
            "\r\n",
            "\t",
            "don't",
            "1234",
            "한국어",
            "ع",
            "👩‍🔬",
            "e\u0301\u0301",
        ),
        *("<|endoftext|>", "</s>", "[UNK]", "<0x41>", "\\n", "a" * 300),
    ]
    return ["", *("".join(rng.choices(pieces, k=rng.randrange(1, 12))) for _ in range(n - 1))]


def test_transformers_reads_any_text_as_the_same_ids_and_gives_it_back(exported: tuple[LoadedModel, Path]) -> None:
    loaded, folder = exported
    theirs, texts = AutoTokenizer.from_pretrained(folder), odd_strings(1000)
    for text, ids in zip(texts, theirs(texts)["input_ids"], strict=True):
        assert ids == loaded.tokenizer.encode(text).tolist(), repr(text)
        assert theirs.decode(ids) == text
    assert len(theirs) == loaded.tokenizer.vocab_size and theirs.all_special_tokens == []
    assert theirs.model_max_length == 128


def test_transformers_computes_the_same_logits_and_greedy_text(exported: tuple[LoadedModel, Path]) -> None:
    loaded, folder = exported
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    ids_BT = torch.randint(loaded.model.vocab_size, (3, 128), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (theirs(ids_BT).logits - loaded.model(ids_BT)).abs().max() <= 1e-4
        ours_BT = ids_BT[:1, :20]
        for _ in range(100):
            ours_BT = torch.cat((ours_BT, loaded.model(ours_BT)[:, -1:].argmax(-1)), dim=1)
    theirs_BT = theirs.generate(ids_BT[:1, :20], do_sample=False, max_new_tokens=100)
    assert torch.equal(theirs_BT, ours_BT)


def test_importing_what_was_exported_gives_the_same_model(exported: tuple[LoadedModel, Path]) -> None:
    loaded, folder = exported
    back = read_folder(folder, CPU)
    assert back.model.config == loaded.model.config
    assert back.tokenizer.to_dict() == loaded.tokenizer.to_dict()
    weights, expected = back.model.state_dict(), loaded.model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("gpt2", "GPT2LMHeadModel"), ("qwen3", "Qwen3ForCausalLM"), ("llama", "LlamaForCausalLM")],
)
def test_the_folder_is_whole_and_needs_no_code(tmp_path: Path, architecture: str, kind: str) -> None:
    export(random_model(architecture), "hf", tmp_path / "model")
    names = "README.md config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json"
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == names.split()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architectures"] == [kind] and "auto_map" not in config
    with safe_open(tmp_path / "model" / "model.safetensors", framework="pt") as weights:
        assert weights.metadata() == {"format": "pt"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_writes_on_by_itself_and_trains_further(tmp_path: Path, architecture: str) -> None:
    export(random_model(architecture, size="multiples of 64"), "hf", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    inputs = tokenizer("The", return_tensors="pt")
    written = model.generate(**inputs)  # with nothing told: as many tokens as block_size has room for
    assert 10 < written.shape[1] <= 128 and tokenizer.decode(written[0]).startswith("The")
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = tokenizer([TEXT[:100], TEXT[60:160]], return_tensors="pt", truncation=True, max_length=60)["input_ids"]
    losses = []
    for _ in range(10):
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


# --- the card ---


def test_the_card_tells_what_the_model_is_and_shows_what_it_writes() -> None:
    loaded = random_model("gpt2")
    text = card(loaded)
    head = text.split("---\n")[1]
    assert "license: other" in head and "pipeline_tag: text-generation" in head
    for told in (
        "1,234 steps",
        "1.5000 nats",
        "2.0625",
        f"{loaded.model.n_parameters:,}",
        "| learning_rate | `0.0005` |",
    ):
        assert told in text
    assert "wikitext-103 or python-docs" in text and "License: not\nchosen yet" in text
    first_line = next(iter("".join(stream(engine_for(loaded), SampleConfig(max_tokens=300), 1)).split("\n")))
    clean = "".join(
        char if char.isprintable() or char == "\t" else "\N{REPLACEMENT CHARACTER}"
        for char in first_line.split("\r")[0]
    )
    assert f"The{clean}" in text


def test_the_card_keeps_paths_and_passwords_to_itself() -> None:
    loaded = random_model("gpt2")
    loaded.run_config["data"] = (
        "/home/me/secret/book.txt",
        "C:\\me\\b.txt",
        "https://me:pw@host/a.txt?key=1",
        "hf:a/b",
    )
    loaded.run_config["out_dir"] = "/home/me/secret/run"
    text = card(loaded)
    for told in ("`book.txt`", "`b.txt`", "`https://host/a.txt`", "`hf:a/b`"):
        assert told in text
    assert not any(word in text for word in ("secret", "pw@", "key=1", "C:"))


def test_settings_of_a_stranger_cannot_shape_the_card() -> None:
    loaded = random_model("gpt2")
    loaded.run_config["data"] = ("`\n# Owned\n\x1b]0;<script>`" + "a" * 10_000, *["more"] * 1000)
    loaded.run_config["precision"] = "x`|\n# Owned"
    text = card(loaded)
    assert "\n# Owned" not in text and "\x1b" not in text and len(text) < 10_000
    assert "and 981 more" in text


# --- the folder, whole or absent ---


@pytest.mark.parametrize("to", EXPORTERS)
def test_a_folder_that_is_there_is_left_alone(tmp_path: Path, to: str) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(UsageError, match=r"model is there already; name another place with --out"):
        export(random_model("gpt2"), to, tmp_path / "model")
    assert list((tmp_path / "model").iterdir()) == [] and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("n_bytes", [0, 100, 5000])
@pytest.mark.parametrize("to", ["hf", "safetensors"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, fill_disk, n_bytes: int, to: str) -> None:
    fill_disk(hf if to == "hf" else export_module, n_bytes)
    with pytest.raises(OutOfResourcesError, match=r"no space left to write .*model: .*--out"):
        export(random_model("gpt2"), to, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(hf, "card", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(random_model("gpt2"), "hf", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutOfResourcesError, match=r"cannot write .*choose another folder with --out"):
        export(random_model("gpt2"), "hf", tmp_path / "file" / "model")


def test_without_the_package_gguf_its_format_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.delitem(sys.modules, "tiny_gpt.export.gguf", raising=False)
    with pytest.raises(UsageError, match="pip install gguf"):
        export(random_model("gpt2"), "gguf", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_the_plain_folder_holds_everything_by_our_own_names(tmp_path: Path) -> None:
    loaded = random_model("qwen3", size="odd numbers")
    export(loaded, "safetensors", tmp_path / "model")
    saved = json.loads((tmp_path / "model" / "config.json").read_text())
    assert ModelConfig(**saved["model_config"]) == loaded.model.config and Progress(**saved["progress"]) == PROGRESS
    assert saved["tokenizer"] == loaded.tokenizer.to_dict() and saved["run_config"]["learning_rate"] == 5e-4
    assert saved["format_version"] == 1
    with safe_open(tmp_path / "model" / "model.safetensors", framework="pt") as weights:
        for name, weight in loaded.model.state_dict().items():
            assert torch.equal(weights.get_tensor(name), weight)


# --- the command ---


def test_the_command_offers_every_format() -> None:
    assert typing.get_args(typing.get_type_hints(ExportCommand)["to"]) == tuple(EXPORTERS)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mlx_is_named_where_it_computes_the_same(tmp_path: Path, architecture: str) -> None:
    """mlx-lm's GPT-2 takes the embedding for the head."""
    notes = write_hf(random_model(architecture), tmp_path)
    text = "\n".join([*notes, (tmp_path / "README.md").read_text(encoding="utf-8")])
    assert text.count("mlx_lm.generate") == (0 if architecture == "gpt2" else 2)


def test_the_command_names_the_folder_after_the_run_and_tells_what_to_type(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "bard"
    run.mkdir(parents=True)
    (run / CONFIG_FILE).write_text("{}")
    save_loaded(run / "tiny_gpt_best.pt", random_model("qwen3"))
    assert main(["export", "bard", "--to", "hf"]) == 0
    out = capsys.readouterr().out
    assert "bard-hf" in out and "model.safetensors" in out and "mlx_lm.generate --model ." in out
    assert (tmp_path / "bard-hf" / "model.safetensors").is_file()
    assert main(["export", "bard", "--to", "hf"]) == 2
    assert "bard-hf is there already" in capsys.readouterr().err
    assert (
        main(["export", "bard-hf", "--to", "safetensors", "--out", "again"]) == 0
    )  # an exported folder is a model too
    assert (tmp_path / "again" / "config.json").is_file()
    assert main(["export", "nothing.pt", "--to", "hf"]) == 3 and not (tmp_path / "nothing-hf").exists()


def test_names_of_models(tmp_path: Path) -> None:
    (tmp_path / "bard").mkdir()
    assert model_name(tmp_path / "bard" / "tiny_gpt_best.pt") == "tiny_gpt_best"
    (tmp_path / "bard" / CONFIG_FILE).touch()
    assert (
        model_name(tmp_path / "bard" / "tiny_gpt_best.pt")
        == model_name(tmp_path / "bard" / "tiny_gpt_final.pt")
        == "bard"
    )
    assert model_name(tmp_path / "bard") == "bard" and model_name(tmp_path / "bard" / "other.pt") == "other"
