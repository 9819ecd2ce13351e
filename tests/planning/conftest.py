"""What was measured in one test is not known in the next."""

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path_factory.mktemp("cache")))
