"""Fixtures that read sources to documents, or to the error that refuses them."""

import pytest

from tests.data.support import text_of
from tiny_gpt.data.corpus import read_corpus
from tiny_gpt.data.progress import finish
from tiny_gpt.data.readers.base import ReadOptions
from tiny_gpt.data.sources.resolve import resolve
from tiny_gpt.data.text_file import SEPARATOR
from tiny_gpt.errors import BadInputError


@pytest.fixture
def read(tmp_path_factory):
    """`read(spec, ..., text_field=..., encoding=...)`: the documents and the corpus of some sources."""

    def read(*specs, **options):
        sources = finish(resolve(specs))
        corpus = finish(read_corpus(sources.files, tmp_path_factory.mktemp("corpus") / "text", ReadOptions(**options)))
        corpus.skipped.update(sources.skipped)
        text = text_of(corpus.text.whole())
        return text.split(SEPARATOR.decode()) if len(corpus.text.documents) > 1 else [text], corpus

    return read


@pytest.fixture
def refused(read):
    """`refused(spec, ...)`: the one-line error that reading some sources raises."""

    def refused(*specs, **options):
        with pytest.raises(BadInputError) as raised:
            read(*specs, **options)
        assert raised.value.code and "\n" not in str(raised.value)
        return raised.value

    return refused
