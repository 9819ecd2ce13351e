"""Plain technical English: words of the project's early private dialect must not come back.

Each pattern has what to write instead; docs/glossary.md has the terms. Words are matched case-insensitively in code,
comments, messages and documentation.
"""

import re
from pathlib import Path

import pytest

from tiny_gpt import bootstrap

ROOT = Path(bootstrap.ROOT)
PATTERNS_OF_FILES = ("*.md", "*.py", "docs/**/*.md", "benchmarks/*.py", "scripts/*.py")
FILES = sorted(
    path for pattern in (*PATTERNS_OF_FILES, "tiny_gpt/**/*.py", "tests/**/*.py") for path in ROOT.glob(pattern)
)
# Old names of settings, which are still read; and the changelog's table of renamed flags.
EXEMPT = {"tests/test_words.py", "tests/config/test_config.py", "tiny_gpt/config/saved.py"}
CHANGELOG_TABLE = re.compile(r"^  \|.*\|$", re.MULTILINE)

WORDS = {
    # Machine learning
    r"(learn\w*|know\w*|knew|known) (\w+ ){0,3}by heart": "memorize, overfit",
    r"(is|are|was|were|stays?) no numbers?|no number any more|what is no number": "is NaN or infinite",
    r"trapezoid\w*": "wsd",
    r"classic and modern|modern and classic|`?--architecture (classic|modern)|`(classic|modern)`": "gpt2, qwen3",
    r"pieces of words": "subwords, bpe tokens",
    r"(times|readings) (through|of) the text": "passes over the text",
    r"(self|trainer|run)\.(learner|keeper|examiner)|(class|import) (Learner|Keeper|Examiner)": "state, evaluator",
    r"rehears\w+": "benchmark of steps, StepBenchmark",
    r"the turning|turned queries": "rotary embedding, rope",
    r"the way back": "backward pass",
    r"makeup": "keep_scale",
    # Security and faults
    r"strangers?('s)?": "untrusted",
    r"hostile": "malicious, untrusted",
    r"torture\w*": "fault injection, faults",
    r"mishaps?": "failure, incident",
    r"(step|steps|stepped|stepping) back": "roll back",
    # Phrases
    r"so many times|so many (bytes|tokens|steps|parts|seconds)": "how many, n",
    r"(can|could)(not| not) be had|to be had": "is unavailable",
    r"for good": "permanently",
    r"told as|(had been|was|were) told (\d|\w+ to)|told =": "reported as, predicted, messages",
    r"goes by\b|go by the": "depends on, follows",
    r"of its own accord|by itself alone": "automatically",
    r"stands? in for|stood in for": "replaces",
    r"on(to)? the way there|found its way": "",
    r"what was there": "the existing file",
    r"foreseen|foresaw|foretold": "expected, predicted",
    r"goes on with|go on with|going on with": "continues, resumes",
    r"in the morning after|by morning": "after the run; overnight",
    r"the house\b": "the package, the import rules",
    r"mend(s|ed|ing)?": "fix, repair",
    r"so-and-so|the very (same )?(line|step|ids)": "exactly the same",
}
PATTERNS = [
    (re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])", re.IGNORECASE), instead) for pattern, instead in WORDS.items()
]


def relative(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [path for path in FILES if relative(path) not in EXEMPT], ids=relative)
def test_words_that_are_out(path):
    text = path.read_text(encoding="utf-8")
    if path.name == "CHANGELOG.md":
        text = CHANGELOG_TABLE.sub("", text)
    found = [
        f"{relative(path)}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}: say {instead or 'it plainly'}"
        for pattern, instead in PATTERNS
        for match in pattern.finditer(text)
    ]
    assert not found, "\n".join(found)
