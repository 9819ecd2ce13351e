"""Which hosts, pages and keys a server accepts."""

import pytest
from starlette.datastructures import Headers

from tests.web.support import access
from tiny_gpt.config import WebConfig
from tiny_gpt.errors import UsageError
from tiny_gpt.web.access import access_for
from tiny_gpt.web.errors import RefusedError

KEY = "sesame-open-12"


def is_page_allowed(rules, **headers):
    try:
        rules.check_page(Headers({name.replace("_", "-"): value for name, value in headers.items()}))
    except RefusedError as error:
        assert error.status == 403
        return False
    return True


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8000", "localhost", "localhost:9000", "LOCALHOST:80", "[::1]:8000", "app.localhost:8000"],
)
def test_loopback_names_are_accepted_on_any_port(host):
    assert is_page_allowed(access(), host=host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        *"evil.example 127.0.0.1.evil.example localhost.evil.example 192.168.1.7:8000 [::1 a@localhost 0.0.0.0"
        " evil.example:8000 127.0.0.1@evil.example localhost\xe9".split(),
    ],
)
def test_foreign_hosts_are_refused_on_loopback(host):
    assert not is_page_allowed(access(), host=host)


def test_a_public_server_answers_to_addresses_but_not_to_foreign_names():
    rules = access(host="0.0.0.0", api_key=KEY)
    assert is_page_allowed(rules, host="192.168.1.7:8000")
    assert not is_page_allowed(rules, host="evil.example")


def test_pages_of_the_server_itself_are_allowed():
    assert is_page_allowed(
        access(), host="localhost:8000", origin="http://localhost:8000", sec_fetch_site="same-origin"
    )


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:9999", "http://localhost", "file://", ""]
)
def test_other_origins_are_refused(origin):
    assert not is_page_allowed(access(), host="localhost:8000", origin=origin)


def test_allowed_origins_and_their_host_names_are_accepted():
    rules = access(allow_origin=("https://write.example", "app://obsidian.md"))
    for origin in rules.origins:
        assert is_page_allowed(rules, host="localhost", origin=origin)
    assert is_page_allowed(rules, host="write.example")
    assert not is_page_allowed(rules, host="localhost", origin="https://write.example.evil.example")


@pytest.mark.parametrize(("mode", "allowed"), [("no-cors", False), ("cors", False), ("navigate", True)])
def test_other_sites_may_link_here_but_load_nothing(mode, allowed):
    headers = dict(host="localhost", sec_fetch_site="cross-site", sec_fetch_mode=mode)
    assert is_page_allowed(access(), **headers) == allowed


def status_for(rules, **headers):
    try:
        rules.check_key(Headers(headers))
    except RefusedError as error:
        return error.status, error.code
    return 200, ""


def test_a_key_is_accepted_as_bearer_token_or_cookie_only():
    rules = access(api_key=KEY)
    assert status_for(rules, authorization=f"Bearer {KEY}") == (200, "")
    assert status_for(rules, authorization=f"bearer  {KEY} ") == (200, "")
    assert status_for(rules, cookie=f"other=1; {rules.cookie_name}={rules.cookie_value}") == (200, "")
    for wrong in ({}, {"authorization": KEY}, {"authorization": f"Basic {KEY}"}, {"authorization": "Bearer é"}):
        assert status_for(rules, **wrong) == (401, "invalid_api_key")
    assert status_for(rules, cookie=f"{rules.cookie_name}={KEY}") == (401, "invalid_api_key")
    assert status_for(access()) == (200, "")


def test_other_addresses_need_a_key():
    for host in ("0.0.0.0", "::", "192.168.1.7"):
        with pytest.raises(UsageError) as caught:
            access(host=host)
        assert caught.value.code == "no-api-key" and host in str(caught.value)
        assert not access(host=host, api_key=KEY).loopback_only


def test_the_key_can_come_from_the_environment():
    assert access_for(WebConfig(), {"TINY_GPT_API_KEY": KEY}).api_key == KEY
    assert access_for(WebConfig(api_key=KEY), {"TINY_GPT_API_KEY": "another-key"}).api_key == KEY
    with pytest.raises(UsageError, match="TINY_GPT_API_KEY"):
        access_for(WebConfig(), {"TINY_GPT_API_KEY": "short"})


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        (dict(api_key="short"), "api-key-unusable"),
        (dict(api_key="has a space in it"), "api-key-unusable"),
        (dict(port=70000), "port-out-of-range"),
        (dict(host=""), "no-host"),
        (dict(allow_origin=("*",)), "origin-unusable"),
        (dict(allow_origin=("https://example.org/page",)), "origin-unusable"),
        (dict(allow_origin=("example.org",)), "origin-unusable"),
    ],
)
def test_impossible_settings_are_explained(settings, code):
    with pytest.raises(UsageError) as caught:
        WebConfig(**settings)
    assert caught.value.code == code
