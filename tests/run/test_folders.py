"""Run folders: their names, and how runs and models are found."""

import pytest

from tiny_gpt.config import (
    BEST_FILE,
    RunConfig,
    TrainConfig,
)
from tiny_gpt.errors import (
    BadInputError,
)
from tiny_gpt.run.folders import config_of, find_model, find_run, folder_for, name_for


@pytest.mark.parametrize(
    ("sources", "name"),
    [
        (("my book.txt",), "my-book"),
        (("books/",), "books"),
        (("a/b.tar.gz", "c"), "b-and-1-more"),
        (("-",), "run"),
        (("https://example.org/x/war.txt?y=1",), "war"),
        (("hf:owner/name",), "name"),
        (("wikitext-103|python-docs",), "wikitext-103-or-python-docs"),
        (("Война и мир.txt",), "Война-и-мир"),
        (("../..",), "run"),
        (("C:\\texts\\a.txt",), "a"),
        ((".txt",), "txt"),
    ],
)
def test_a_run_is_named_after_its_text(sources, name):
    assert name_for(sources) == name


def test_a_given_folder_is_used_as_it_is(tmp_path):
    config = RunConfig(train=TrainConfig(out_dir=str(tmp_path)))
    assert folder_for(config) == folder_for(config, is_new=True) == tmp_path


def test_resume_takes_the_last_run_where_all_are_finished(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = RunConfig().with_flat({"data": "book.txt"}, "test")
    assert folder_for(config, is_resumed=True).name == "book"
    for name in ("book", "book-2"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / BEST_FILE).touch()
    assert folder_for(config).name == "book-3"
    assert folder_for(config, is_resumed=True).name == "book-2"


def test_what_is_not_found_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for find, name, code in (
        (find_run, "nosuch", "run-not-found"),
        (find_run, "", "no-unfinished-run"),
        (find_model, "nosuch", "no-model-yet"),
        (find_model, "", "no-model-yet"),
    ):
        with pytest.raises(BadInputError) as error:
            find(name)
        assert error.value.code == code and name in str(error.value)
    (tmp_path / "runs" / "text").mkdir(parents=True)
    (tmp_path / "runs" / "text" / BEST_FILE).touch()
    with pytest.raises(BadInputError, match="text") as error:
        find_model("nosuch")
    assert error.value.code == "model-not-found"
    with pytest.raises(BadInputError) as error:
        config_of(tmp_path / "runs" / "text")
    assert error.value.code == "no-intact-checkpoint"


def test_a_run_that_is_not_there_leads_to_those_that_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInputError, match="there are no runs here"):
        find_run("nosuch")
    run = tmp_path / "runs" / "text"
    run.mkdir(parents=True)
    (run / BEST_FILE).touch()
    with pytest.raises(BadInputError, match=r"did you mean text\?"):
        find_run("txet")
    with pytest.raises(BadInputError, match=r"runs here: runs.text"):
        find_run("nosuch")
    with pytest.raises(BadInputError) as error:
        find_run("")
    assert "resume" not in str(error.value), "a model alone cannot be trained further"
    (run / "checkpoints" / "step-00000004").mkdir(parents=True)
    with pytest.raises(BadInputError, match="tiny-gpt resume text --for 1h"):
        find_run("")
