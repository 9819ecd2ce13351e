"""Tokenizers that take memory, or forever."""

import json

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests.model_io.untrusted.honest import ESCAPE, later, of_parts


def library(**steps):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    built = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    for name, step in steps.items():
        setattr(built, name, step)
    return built.to_str()


def tokenizer_json(text):
    return of_parts(tokenizer={"type": "bpe", "tokenizer_json": text})


def edited(**changes):
    """The honest tokenizer's JSON with settings replaced."""
    return tokenizer_json(compact(json.loads(library()) | changes))


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def model_but(**changes):
    settings = json.loads(library())
    return tokenizer_json(compact(settings | {"model": settings["model"] | changes}))


def cut_by(pattern):
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return tokenizer_json(library(pre_tokenizer=pre_tokenizers.Sequence([split, last])))


def characters(value):
    return of_parts(tokenizer={"type": "char", "characters": value})


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": False}
TEXT_A = {"Sequence": {"id": "A", "type_id": 0}}
REPEATING = {"type": "TemplateProcessing", "single": [TEXT_A] * 100, "pair": [TEXT_A], "special_tokens": {}}
DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
ALL_CHARACTERS = "".join(map(chr, [*range(128, 0xD800), *range(0xE000, 0x110000)]))
BYTES_VOCAB = json.loads(library())["model"]["vocab"]

TOKENIZER = {
    "an unknown type": of_parts(tokenizer={"type": ESCAPE}),
    "a type that is a tuple": of_parts(tokenizer={"type": ("bpe",)}),
    "no type": of_parts(tokenizer={}),
    "a character twice": characters("éé"),
    "an ASCII character": characters("é\x1b"),
    "a lone surrogate": characters("\ud800"),
    "5 million characters": later(lambda: characters("é" * 5_000_000)),
    "all characters": characters(ALL_CHARACTERS),
    "characters that are a number": characters(7),
    "characters that are a tuple": characters(("é", "ñ")),
    "one character more than embeddings": characters("é"),
    "no JSON": tokenizer_json("no JSON"),
    "JSON of something else": tokenizer_json('{"model":{}}'),
    "JSON that is a number": of_parts(tokenizer={"type": "bpe", "tokenizer_json": 7}),
    "a surrogate in the JSON": tokenizer_json(library().replace('"1.0"', '"1.0\ud800"')),
    "5 million lists": later(lambda: tokenizer_json("[" + "[]," * 5_000_000 + "[]]")),
    "lists a million deep": later(lambda: tokenizer_json("[" * 1_000_000 + "]" * 1_000_000)),
    "settings 100,000 deep": tokenizer_json(library().replace('"post_processor":null', '"post_processor":' + DEEP)),
    "a vocabulary 100,000 deep": tokenizer_json(library().replace('"vocab":{', '"vocab":{"x":' + DEEP + ",")),
    "lists for a vocabulary": later(
        lambda: tokenizer_json(library().replace('"merges":[', '"merges":[' + "[]," * 5_000_000))
    ),
    "20 MB of empty tokens": later(
        lambda: tokenizer_json(library().replace('"vocab":{', '"vocab":{' + '"":0,' * 4_000_000))
    ),
    "800,000 merges": later(
        lambda: tokenizer_json(library().replace('"merges":[', '"merges":[' + '["!","!"],' * 800_000))
    ),
    "7 million escapes": later(
        lambda: tokenizer_json(library().replace('"vocab":{', '"vocab":{"' + "\\\\" * 7_000_000 + '":0,'))
    ),
    "an endless token": later(lambda: tokenizer_json(library().replace('"vocab":{', '"vocab":{"' + "a" * 15_000_000))),
    "a merge of unknown tokens": model_but(merges=[["x", "yy"]]),
    "a merge that gives no token": model_but(merges=[["x", "y"]]),
    "a merge longer than any token": model_but(vocab=BYTES_VOCAB | {"xy": 256}, merges=[["x", "y"], ["xy", "xy"]]),
    "an unknown token that is none": model_but(
        unk_token="zz", vocab={c: i for c, i in BYTES_VOCAB.items() if c != "a"}
    ),
    "a merge of three": model_but(merges=[["x", "y", "z"]]),
    "an id of 4 billion": model_but(vocab=BYTES_VOCAB | {"he": 4_000_000_000}),
    "an id of 9 million": model_but(vocab=BYTES_VOCAB | {"he": 9_000_000}),
    "an id of two tokens": model_but(vocab=BYTES_VOCAB | {"xy": 120}, merges=[["x", "y"]]),
    "a negative id": model_but(vocab=BYTES_VOCAB | {"he": -1}),
    "few bytes": model_but(vocab={"a": 0}),
    "a prefix longer than tokens": model_but(continuing_subword_prefix="#" * 100, merges=[["x", "y"]]),
    "a suffix": model_but(end_of_word_suffix="</w>"),
    "a random tokenizer": model_but(dropout=0.5),
    "a Unigram model": model_but(type="Unigram", vocab=[["a", 0.0]], unk_id=0),
    "a WordPiece model": model_but(type="WordPiece", max_input_chars_per_word=2**63),
    "two models": tokenizer_json(library()[:-1] + ',"model":{"type":"WordLevel","vocab":{},"unk_token":"a"}}'),
    "another cut behind the model": tokenizer_json(library()[:-1] + f',"pre_tokenizer":{compact(SPLIT)}}}'),
    "a pattern that takes forever": cut_by(r"(a+)+b"),
    "a pattern of alternatives that takes forever": cut_by(r"(?:a|a)+(?:a|a)+b"),
    "a pattern that looks back": cut_by(r"(a*)*\1b"),
    "a pattern of many optionals": cut_by("a?" * 30 + "a" * 30),
    "a pattern that takes memory": edited(pre_tokenizer=SPLIT | {"pattern": {"Regex": "(((a{1,999}){1,999}){1,999})"}}),
    "a pattern of 100,000 characters": edited(pre_tokenizer=SPLIT | {"pattern": {"Regex": "a" * 100_000}}),
    "a pattern that is none": edited(pre_tokenizer=SPLIT | {"pattern": {"Regex": "(" * 1000}}),
    "a pattern that is a list": edited(pre_tokenizer=SPLIT | {"pattern": ["Regex", "(a+)+b"]}),
    "a list in place of a step": edited(pre_tokenizer=["Split", {"Regex": "(a+)+b"}, "Isolated", False]),
    "a pattern deep inside": edited(
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [{"type": "Sequence", "pretokenizers": [SPLIT]}, BYTE_LEVEL],
        }
    ),
    "a pattern in the decoder": edited(decoder={"type": "Replace", "pattern": {"Regex": "(a+)+b"}, "content": ""}),
    "a pattern in the normalizer": tokenizer_json(library(normalizer=normalizers.Replace(Regex("(a+)+b"), ""))),
    "text doubled forty times": edited(pre_tokenizer={"type": "Sequence", "pretokenizers": [BYTE_LEVEL] * 40}),
    "text doubled ten times": edited(pre_tokenizer={"type": "Sequence", "pretokenizers": [BYTE_LEVEL] * 10}),
    "text replaced by longer text": tokenizer_json(library(normalizer=normalizers.Replace("a", "a" * 100_000))),
    "text repeated a million times": edited(post_processor={"type": "Sequence", "processors": [REPEATING] * 3}),
    "a thousand steps": edited(normalizer={"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 1000}),
    "a table of characters": edited(normalizer={"type": "Precompiled", "precompiled_charsmap": "A" * 1000}),
    "a step without a kind": edited(pre_tokenizer={"pattern": {"Regex": "(a+)+b"}}),
    "padding to 2^60": edited(
        padding={"strategy": {"Fixed": 2**60}, "direction": "Right", "pad_to_multiple_of": None}
        | {"pad_id": 0, "pad_type_id": 0, "pad_token": "a"}
    ),
    "added tokens that are none": edited(added_tokens=[1, None, "a", {"id": ESCAPE}]),
    "100,000 added tokens": later(
        lambda: edited(added_tokens=[{"id": 256 + i, "content": str(i)} for i in range(100_000)])
    ),
    "an added token at 4 billion": edited(
        added_tokens=[
            {"id": 4_000_000_000, "content": "<s>", "single_word": False, "lstrip": False}
            | {"rstrip": False, "normalized": False, "special": True}
        ]
    ),
    "a tokenizer that loses text": tokenizer_json(library(normalizer=normalizers.Lowercase())),
    "a token of control characters": model_but(vocab=BYTES_VOCAB | {ESCAPE: 256}),
    "a token more than embeddings": model_but(vocab=BYTES_VOCAB | {"xy": 256}, merges=[["x", "y"]]),
}
