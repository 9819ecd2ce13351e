"""What messages advise: every command and flag that they name exists, and doing what they say is accepted."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_docs import FLAG, OTHER_FLAGS, flags_of
from tiny_gpt.cli.main import COMMANDS
from tiny_gpt.cli.natural import NOT_HERE, OTHER_NAMES

PACKAGE = Path(__file__).parents[2] / "tiny_gpt"
# Flags of other programs that the package starts or speaks of.
FOREIGN_FLAGS = OTHER_FLAGS | {"--no-", *OTHER_NAMES, *NOT_HERE}
FOREIGN_FLAGS |= {"--standalone", "--nproc-per-node", "--shutdown-timeout"}  # torchrun
FOREIGN_FLAGS |= {"--what", "--who", "--why", "--mode"}  # systemd-inhibit
FOREIGN_FLAGS |= {"--model", "--temp", "--logdir", "--runtime-memory-check-threshold"}  # mlx-lm, TensorBoard, LLVM
COMMAND = re.compile(r"tiny-gpt ([a-z]+)\b((?: [^;,.()\n]*)?)")


def messages() -> Iterator[tuple[str, str]]:
    """(place, text) of every string in the package but docstrings; X stands for what is filled in."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parts = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr)
            for inner in ast.walk(node)
            if inner is not node
        }
        left_out = parts | {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if id(node) in left_out:
                continue
            place = f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield place, node.value
            if isinstance(node, ast.JoinedStr):
                yield place, "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)


def test_commands_and_flags_that_messages_name_exist():
    every = FOREIGN_FLAGS.union(*map(flags_of, COMMANDS))
    unknown = []
    n_commands = n_flags = 0
    for place, text in messages():
        for command, rest in COMMAND.findall(text):
            n_commands += 1
            if command not in COMMANDS:
                unknown.append(f"{place}: tiny-gpt {command}")
                continue
            n_flags += len(FLAG.findall(rest))
            unknown += [f"{place}: {command} {flag}" for flag in FLAG.findall(rest) if flag not in flags_of(command)]
        unknown += [f"{place}: {flag}" for flag in FLAG.findall(text) if flag not in every]
    assert not unknown, "\n".join(unknown)
    assert n_commands > 40 and n_flags > 5


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """A folder with texts, where `train` accepts its arguments and does not train: the accepted configs."""
    monkeypatch.chdir(tmp_path)
    sentences = "The lobster said that every one of them had been told to write it down.\n" * 40
    Path("text.txt").write_text(sentences)
    Path("my book.txt").write_text(sentences)
    Path("latin.txt").write_bytes("Le homard a dit à chacun d'écrire : déjà vu, être là.\n".encode("cp1252") * 60)
    Path("table.csv").write_text("title,story\n" + 'a,"the lobster said so, twice"\n' * 60)
    Path("rows.jsonl").write_text('{"story": "the lobster said so, twice"}\n' * 60)
    Path("utf16.txt").write_bytes(sentences.encode("utf-16-le"))
    configs = []
    monkeypatch.setattr("tiny_gpt.cli.train.launch_training", lambda config, *_, **__: configs.append(config) or 0)
    return configs


# (command line, its error, what the message advises as a pattern, the command line that follows the advice)
REMEDIES = [
    (
        "train text.txt --n-head 3 --d-model 128",
        "d-model-not-divisible",
        r"try (--d-model \d+)",
        "train text.txt --n-head 3 {0}",
    ),
    ("train text.txt --d-model 129", "head-dim-odd", r"try (--d-model \d+)", "train text.txt {0}"),
    (
        "train text.txt --n-head 5 --d-model 129",
        "d-model-not-divisible",
        r"try (--d-model \d+)",
        "train text.txt --n-head 5 {0}",
    ),
    (
        "train text.txt --n-head 3 --d-model 129",
        "head-dim-odd",
        r"try (--d-model \d+)",
        "train text.txt --n-head 3 {0}",
    ),
    ("train text.txt --head-dim 7", "head-dim-odd", r"try (--head-dim \d+)", "train text.txt {0}"),
    (
        "train text.txt --recipe overnight --d-model 250",
        "d-model-not-divisible",
        r"try (--d-model \d+)",
        "train text.txt --recipe overnight {0}",
    ),
    ("train text.txt --for 6", "number-without-unit", r"(--for 6h)", "train text.txt {0}"),
    ("train text.txt --for 6", "number-without-unit", r"(--for 6m)", "train text.txt {0}"),
    ("train text.txt --for 6", "number-without-unit", r"(--for 6s)", "train text.txt {0}"),
    ("train text.txt --until 7", "number-without-unit", r"(--until 7am)", "train text.txt {0}"),
    ("train text.txt --until 7", "number-without-unit", r"(--until 7:00)", "train text.txt {0}"),
    ("train text.txt --for banana", "duration-invalid", r"(90s), 5m", "train text.txt --for {0}"),
    ("train text.txt --until 25:00", "time-of-day-invalid", r"(07:00)", "train text.txt --until {0}"),
    ("train my book.txt", "path-not-quoted", r"write ('my book.txt')", "train {0}"),
    ("data my book.txt", "path-not-quoted", r"write ('my book.txt')", "data {0}"),
    ("train tex.txt", "source-not-found", r"did you mean (\S+)\?", "train {0}"),
    ("train nosuch.txt", "source-not-found", r"\(tiny-gpt (data list)\)", "{0}"),
    ("data", "text-not-named", r"tiny-gpt (data list)", "{0}"),
    ("data latin.txt", "text-not-utf8", r"(--encoding [\w-]+)", "data latin.txt {0}"),
    ("data table.csv", "text-field-missing", r"(story)", "data table.csv --text-field {0}"),
    ("data rows.jsonl --text-field x", "text-field-missing", r"(story)", "data rows.jsonl --text-field {0}"),
    (
        "train text.txt --batch-size 6 --grad-accum-steps 7",
        "more-micro-batches-than-blocks",
        r"give at most (\d+)",
        "train text.txt --batch-size 6 --grad-accum-steps {0}",
    ),
    ("train text.txt --recipe nosuch", "", r"(overnight)", "train text.txt --recipe {0}"),
    ("train text.txt --tokenizer nonsense", "tokenizer-unknown", r"(bpe)", "train text.txt --tokenizer {0}"),
    ("train text.txt --resume --new", "resume-and-new", r"--resume and (--new)", "train text.txt {0}"),
    ("train text.txt --for 1h --steps 5", "several-budgets", r"(--for) and --steps", "train text.txt {0} 1h"),
    ("train text.txt --n-layerr 3", "", r"(--n-layer) INT", "train text.txt {0} 3"),
    ("train text.txt --watch --no-browser", "", r"", "train text.txt --watch"),
]


@pytest.mark.parametrize(
    ("line", "code", "advice", "remedy"), REMEDIES, ids=[f"{row[0]} -> {row[3]}" for row in REMEDIES]
)
def test_what_a_message_advises_is_accepted(launched, command, line, code, advice, remedy):
    failed = command("tiny-gpt", *shlex.split(line))
    assert failed.code in (2, 3) and failed.error_code == code, failed
    match = re.search(advice, failed.err)
    assert match, failed.err
    done = command("tiny-gpt", *shlex.split(remedy.format(*match.groups())))
    assert (done.code, done.error_code) == (0, ""), done
    assert len(launched) == remedy.startswith("train")


def test_words_meant_as_a_prompt_become_one(launched, command):
    failed = command("tiny-gpt", "generate", "The", "lobster")
    advice = re.search(r"--prompt .*", failed.err)
    command("tiny-gpt", "generate", *shlex.split(advice[0])).assert_error(3, "no-model-yet")


VALUES = {"--gpus": "1", "--num-gpus": "1", "--n-gpus": "1", "--ngpus": "1", "--nproc-per-node": "1"}
VALUES |= {"--lr": "3e-4", "--min-lr": "1e-5", "--dtype": "fp32", "--time": "6h", "--hours": "6", "--minutes": "30"}
VALUES |= {"--output-dir": "out", "--init-from": "model.pt", "--resume-from": "model.pt", "--wandb-project": "x"}


@pytest.mark.parametrize("flag", OTHER_NAMES)
def test_flag_of_another_tool_becomes_one_that_is_accepted(launched, command, flag):
    """Whether it is given with a value or alone."""
    for words in ([flag, VALUES.get(flag, "8")], [flag]):
        failed = command("tiny-gpt", "train", "text.txt", *words)
        assert failed.error_code == "flag-of-another-tool"
        ours = shlex.split(re.search(r"this is (--.*)", failed.err)[1])
        if len(ours) == 1:  # given alone: the message names the flag
            ours.append(VALUES.get(flag, "8"))
        name = "generate" if flag == "--max-new-tokens" else "train"
        done = command("tiny-gpt", name, *(["text.txt"] if name == "train" else []), *ours)
        assert done.error_code in ("", "no-model-yet", "tracker-not-installed"), done
        assert done.code != 2 or done.error_code, done.err
