"""Untrusted tokenizer JSON: loaded exactly, or refused if it could do harm."""

import json
import random
import time

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, models, pre_tokenizers

from tiny_gpt.errors import BadInputError
from tiny_gpt.tokenizer.bpe import BpeTokenizer
from tiny_gpt.tokenizer.validation import SAFE_PATTERN, load_untrusted_tokenizer

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
KNOWN = {
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "GPT-4, Llama 3": CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "Qwen 2": CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "Qwen 3.5": CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "nanochat": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
    r"|\s+(?!\S)|\s+",
    "GPT-4o": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + CONTRACTIONS + "?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + CONTRACTIONS + "?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "Kimi": r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lo}\p{M}&&[^\p{Han}]]+"
    + CONTRACTIONS
    + "?",
    "DeepSeek 3": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "DeepSeek 3, Chinese": "[一-龥぀-ゟ゠-ヿ]+",
    "DeepSeek": r"\s?\p{L}+",
    "Falcon": "[0-9][0-9][0-9]",
    "BLOOM": r" ?[^(\s|[.,!?…。，、।۔،])]+",
    "digits": r"\p{N}{1,3}",
}
UNSAFE = [
    *(r"(a+)+b", r"(a|a)*b", r"(?:a|a)+b", r"(?:a?){30}b", r"(a*)*\1", r"(?:(?:a*)*)*b", r"(?i:a)**", r"(?i:\w+)+"),
    *(r"\s*\s*\s*x", r"\s*\s*x", "a++b++c", r"a?a?a?a?a?a?b", r"\p{N}{1,3}+", r"a{1,1000}", "(((a{9}){9}){9}){9}"),
    *(r"(?<=a+)b", r"(?!a+)b", r"(?=(a+))b", r"\X+", r"\R+", r"\g<0>", r"(?<n>a\g<n>)", r"(?~a)", r"\K"),
    *("", "|", "a||b", "|a", "a|", "(", "[", "[a", "a{", "\\", "*", "(?i:a"),
]


@pytest.mark.parametrize("pattern", KNOWN.values(), ids=list(KNOWN))
def test_patterns_of_known_tokenizers_are_safe(pattern):
    assert SAFE_PATTERN.fullmatch(pattern)


@pytest.mark.parametrize("pattern", UNSAFE)
def test_patterns_that_backtrack_are_not_safe(pattern):
    assert not SAFE_PATTERN.fullmatch(pattern)


def test_safe_patterns_are_fast_on_adversarial_texts():
    rng = random.Random(0)
    pieces = r"\s \S a b . [ab] [^a] \p{L} [a-c&&[^b]] ' ? + * ++ {1,3} {9} | | (?!\S) (?i:a|b) (?i:a|b)? $".split(" ")
    texts = ["a" * 300, " " * 300, "ab" * 150, "a" * 299 + "b", " " * 299 + "a"]
    n_passed = 0
    while n_passed < 2000:
        pattern = "".join(rng.choices(pieces, k=rng.randint(2, 14)))
        if not SAFE_PATTERN.fullmatch(pattern):
            continue
        n_passed += 1
        try:
            split = pre_tokenizers.Split(Regex(pattern), "isolated")
        except Exception:  # the library rejects some of them
            continue
        started = time.process_time()
        for text in texts:
            split.pre_tokenize_str(text)
        assert time.process_time() - started < 0.5, pattern


def test_checking_a_pattern_is_fast():
    for pattern in (
        "a" * 1000,
        "a|" * 500,
        "[" * 1000,
        "\\" * 1000,
        "(?i:" + "a|" * 490,
        "aaa+|" * 199 + "(",
        "a?" * 500,
    ):
        started = time.process_time()
        SAFE_PATTERN.fullmatch(pattern)
        assert time.process_time() - started < 0.1


def published_tokenizer():
    """Like published ones: its own split pattern, quotation marks in tokens, tokens added in every way."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("t", "he"), ('"', "]"), ("[", '"'), ("\\", '"'), ('"]', ","), ('"],', '["')]
    tokens = dict.fromkeys([*alphabet, "<|in|>", *(left + right for left, right in merges)])
    vocab = {token: i for i, token in enumerate(tokens)}
    library = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(KNOWN["GPT-4, Llama 3"]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.add_special_tokens(["<|end|>", "<|in|>"])
    library.add_tokens([AddedToken("Ünï😀", single_word=True, normalized=False), "plain"])
    library.add_special_tokens([AddedToken("<|\n|>")])
    return library


@pytest.mark.parametrize(
    "make", [published_tokenizer, lambda: BpeTokenizer.train(["the cat sat on the mat " * 9], 300)._library]
)
def test_loaded_tokenizer_is_the_same(make):
    library = make()
    again = load_untrusted_tokenizer(library.to_str())
    assert again.to_str() == library.to_str()
    text = 'the "],["quotes"] \\",[" plain Ünï😀 Ünï😀x<|in|><|end|> the 12345<|\n|>\r\n'
    assert again.encode(text).ids == library.encode(text).ids


def test_own_tokenizer_with_an_unsafe_pattern_is_refused(tmp_path):
    library = published_tokenizer()
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"(?:\w+\s?){3}"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(BadInputError, match=r"tokenizer\.json: .*--tokenizer bpe") as error:
        BpeTokenizer.from_file(tmp_path / "tokenizer.json")
    assert error.value.code == "tokenizer-pattern-unsafe"


@pytest.mark.parametrize("key", ["version", "added_tokens", "pre_tokenizer", "decoder"])
def test_missing_or_unknown_settings_are_refused(key):
    settings = json.loads(published_tokenizer().to_str())
    for change in ({key: 7}, {key: [[]]}, {key: {"a": {}}}, {"more": 1}):
        with pytest.raises(BadInputError):
            load_untrusted_tokenizer(json.dumps(settings | change, separators=(",", ":"), ensure_ascii=False))
    del settings[key]
    with pytest.raises(BadInputError):
        load_untrusted_tokenizer(json.dumps(settings, separators=(",", ":"), ensure_ascii=False))
