"""Which requests reach an app: host names, origins, the API key."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from schoolhouse.serve.auth import AccessControl, accepts_host, exposure_warning, key_or_variable


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("127.0.0.1:8000", True),
        ("localhost", True),
        ("[::1]:8000", True),
        ("LOCALHOST.", True),
        ("192.168.0.7", False),
        ("evil.test", False),
        ("127.0.0.1.evil.test", False),
        ("", False),
    ],
)
def test_a_loopback_server_accepts_loopback_names(header: str, accepted: bool):
    assert accepts_host(header, "127.0.0.1") is accepted


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("192.168.0.7:8000", True),
        ("[fe80::1]:8000", True),
        ("localhost:8000", True),
        ("models.example.org", True),
        ("Models.Example.org:8000", True),
        ("evil.test", False),
        ("example.org", False),
        ("models.example.org.evil.test", False),
        ("", False),
    ],
)
def test_a_server_for_other_machines_accepts_addresses_and_listed_names(header: str, accepted: bool):
    assert accepts_host(header, "0.0.0.0", ("models.example.org",)) is accepted


def test_a_star_allows_every_name():
    assert accepts_host("any.test", "0.0.0.0", ("*",))


@pytest.fixture
def client() -> Callable[..., TestClient]:
    def make(**options: Any) -> TestClient:
        app = FastAPI()
        app.get("/api/x")(lambda: "x")
        app.get("/")(lambda: "page")
        guarded = AccessControl(app, options.pop("host", "127.0.0.1"), **options)
        return TestClient(guarded, base_url="http://127.0.0.1")

    return make


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_request_of_another_site_without_an_origin_is_refused(client: Callable[..., TestClient], site: str):
    """An <img> of another site sends no Origin."""
    headers = {"Sec-Fetch-Site": site}
    assert client().get("/api/x", headers=headers).status_code == 403
    assert client().get("/", headers=headers).status_code == 200  # a link to the page


def test_a_request_of_the_own_page_or_of_an_allowed_origin_is_accepted(client: Callable[..., TestClient]):
    assert client().get("/api/x", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200
    assert client().get("/api/x", headers={"Sec-Fetch-Site": "none"}).status_code == 200
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "http://friend.test"}
    assert client(allowed_origins=("http://friend.test",)).get("/api/x", headers=headers).status_code == 200


def test_the_origin_is_compared_with_the_checked_host(client: Callable[..., TestClient]):
    exposed = client(host="0.0.0.0", allowed_hosts=("models.example.org",))
    rebound = {"Host": "evil.test", "Origin": "http://evil.test"}
    assert exposed.get("/api/x", headers=rebound).status_code == 421
    own = {"Host": "models.example.org", "Origin": "http://models.example.org"}
    assert exposed.get("/api/x", headers=own).status_code == 200
    assert exposed.get("/api/x", headers={**own, "Origin": "http://evil.test"}).status_code == 403


def test_a_page_behind_a_proxy_has_a_listed_name(client: Callable[..., TestClient]):
    proxied = client(allowed_hosts=("models.example.org",))
    headers = {"Host": "127.0.0.1:8000", "Origin": "https://models.example.org"}
    assert proxied.get("/api/x", headers=headers).status_code == 200
    assert client().get("/api/x", headers=headers).status_code == 403


def test_the_key_comes_from_the_option_or_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SCHOOLHOUSE_API_KEY", raising=False)
    assert key_or_variable("") == ""
    monkeypatch.setenv("SCHOOLHOUSE_API_KEY", "from environment\n")
    assert key_or_variable("") == "from environment"
    assert key_or_variable("option") == "option"


def test_only_an_exposed_server_without_a_key_gives_a_warning():
    assert "has no API key" in exposure_warning("0.0.0.0", "")
    assert exposure_warning("0.0.0.0", "key") == exposure_warning("127.0.0.1", "") == exposure_warning("::1", "") == ""
