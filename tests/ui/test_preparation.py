"""The progress of preparing a text on a terminal and in a log."""

import io

import pytest

from tiny_gpt.data.progress import Notice, StageProgress
from tiny_gpt.ui import preparation
from tiny_gpt.ui.preparation import PreparationBar


class Stream(io.StringIO):
    def __init__(self, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


def shown(events, is_terminal):
    stream = Stream(is_terminal)
    bar = PreparationBar(stream)
    for event in events:
        bar.consume(event)
    bar.close()
    return stream.getvalue()


STAGE = [StageProgress("reading", n << 20, 10 << 20) for n in range(10)]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_notice_is_printed_and_short_stages_are_not(is_terminal):
    assert shown([Notice("using B\x1b[31m"), *STAGE], is_terminal) == "using B\ufffd[31m\n"


def test_long_stage_is_one_line_in_a_log(monkeypatch):
    monkeypatch.setattr(preparation, "DELAY_S", 0.0)
    assert shown([*STAGE, StageProgress("trying bpe", 0, None)], False) == "reading 10 MB ...\ntrying bpe ...\n"


def test_long_stage_is_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr(preparation, "DELAY_S", 0.0)
    assert "Reading" in shown(STAGE, True)
