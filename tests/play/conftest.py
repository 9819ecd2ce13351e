"""A run that has learned a text with accents, opened once for all tests."""

import pytest

from tests.play.support import train_run
from tiny_gpt.play.snapshots import Snapshots


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    return train_run(tmp_path_factory.mktemp("play"))


@pytest.fixture(scope="session")
def snapshots(run_folder):
    return Snapshots(run_folder, "cpu")
