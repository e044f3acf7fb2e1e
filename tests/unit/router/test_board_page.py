"""The board's files: who is given them, with what headers, and that they need nothing from anywhere else."""

import re
from typing import Any

import pytest

from router.board.page import PAGE, assets, prefers_html
from tests.support.asgi import Call
from tests.support.fake_engine import FakeEngine
from tests.support.gateways import fake_config, gateway_over
from tests.support.virtual_time import run_virtual

KEY = "0123456789abcdef-of-the-admin"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
HERE, ELSEWHERE = ("host", "127.0.0.1:8080"), ("host", "board.example:8080")
ADMIN_AT = ("127.0.0.1", 9090)


def get(path: str = "/", *headers: tuple[str, str], accept: str = BROWSER, admin_at: Any = None, **server: Any) -> Call:
    """One question to a gateway of its own; the test's socket is 127.0.0.1:8080."""

    async def asked() -> Call:
        engines = {"a": FakeEngine()}
        async with gateway_over(engines, fake_config(engines, server=server)) as running:
            running.gateway.admin_at = admin_at
            call = Call(running.app, path, method="GET", headers=[("accept", accept), *(headers or [HERE])])
            return await call.run()

    return run_virtual(asked())


def test_a_browser_gets_the_page_others_the_landing() -> None:
    """By what each says it prefers; caches are told that it depends on that."""
    page = get()
    assert page.data.startswith(b"<!doctype html>")
    assert page.header("content-type") == "text/html; charset=utf-8"
    for accept in ("", "*/*", "application/json", "application/json, text/html;q=0.9", "text/html;q=0"):
        landing = get(accept=accept)
        assert landing.json()["name"] == "penstock"
        assert landing.json()["board"] == "open this address in a browser"
        assert landing.header("vary") == "accept"
    assert page.header("vary") == "accept"


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        ("text/html", True),
        ("TEXT/HTML; q=0.5, application/json;q=0.4", True),
        ("text/html;q=x", False),
        ("text/*", False),
        (";,=;q", False),
    ],
)
def test_preference_is_read_leniently(accept: str, html: bool) -> None:
    """Nothing a client may send is an error, and only who names HTML gets it."""
    assert prefers_html(accept) is html


def test_policy_lets_nothing_in() -> None:
    """No script, style or request but the gateway's own; no frame, no sniffing, no referrer."""
    for path in ("/", "/board", "/board/board.css", "/board/board.js", "/board/mark.svg"):
        answer = get(path)
        assert answer.status == 200
        policy = dict(part.split(" ", 1) for part in (answer.header("content-security-policy") or "").split("; "))
        assert policy["default-src"] == "'none'"
        assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
        assert policy["frame-ancestors"] == "'none'"
        assert answer.header("x-content-type-options") == "nosniff"


def test_whoever_has_it_is_told_so() -> None:
    """304 with the tag, and no body; another tag gets the file. Never kept without asking."""
    first = get("/board/board.js")
    tag = first.header("etag") or ""
    assert first.header("cache-control") == "no-cache"
    for known in (tag, f'"x", W/{tag}', "*"):
        again = get("/board/board.js", HERE, ("if-none-match", known))
        assert (again.status, again.data, again.header("etag")) == (304, b"", tag)
    assert get("/board/board.js", HERE, ("if-none-match", '"x"')).data == first.data


@pytest.mark.parametrize(
    ("server", "headers", "admin_at", "why"),
    [
        ({"host": "0.0.0.0"}, (HERE,), None, "listens on 0.0.0.0; set server.admin_key"),
        ({}, (ELSEWHERE,), None, "by its loopback address"),
        ({}, (HERE, ("x-forwarded-for", "10.0.0.1")), None, "not through a proxy"),
        ({}, (HERE,), ADMIN_AT, "a listener of their own here: server.admin_host and server.admin_port"),
        ({"admin_key": KEY}, (HERE,), ADMIN_AT, "a listener of their own here"),
    ],
)  # fmt: skip
def test_where_admin_cannot_be_reached_there_is_no_page(server: Any, headers: Any, admin_at: Any, why: str) -> None:
    """The landing says why, and the files are not found."""
    landing = get("/", *headers, admin_at=admin_at, **server)
    assert why in landing.json()["board"]
    for path in ("/board", "/board/board.js"):
        answer = get(path, *headers, admin_at=admin_at, **server)
        assert answer.status == 404
        assert why in answer.json()["error"]["message"]


def test_with_a_key_anybody_may_have_the_page() -> None:
    """It holds no data, and asks for the key; what it reads asks for it, too."""
    page = get("/", ELSEWHERE, host="0.0.0.0", admin_key=KEY)
    assert page.data.startswith(b"<!doctype html>")
    assert get("/admin/fleet", ELSEWHERE, host="0.0.0.0", admin_key=KEY).status == 401


def test_the_admins_own_listener_has_it() -> None:
    """Judged by the address that the request came in at: that one's host decides, not the other's."""
    here = ("127.0.0.1", 8080)  # where the test's calls come in
    for at in (here, ("0.0.0.0", 8080)):
        assert get(admin_at=at, host="0.0.0.0").data.startswith(b"<!doctype html>")
    assert get("/admin/replicas", HERE, admin_at=here, host="0.0.0.0").status == 200
    assert "error" in get("/admin/replicas", HERE, admin_at=("127.0.0.2", 8080), host="0.0.0.0").json()
    refused = get("/admin/replicas", HERE, admin_at=here, admin_host="0.0.0.0")
    assert "listens on 0.0.0.0" in refused.json()["error"]["message"]


def test_no_such_file() -> None:
    """What is not one of ours is not found, wherever it points."""
    for name in ("nothing.js", "..", "%2e%2e%2fpage.py", "document.py"):
        assert get(f"/board/{name}").status == 404


def test_the_page_is_small_and_needs_nobody() -> None:
    """Below 100 KB in all; no address but our own, nothing inline, and a model's words never become markup."""
    found = {name: asset.body.decode() for name, asset in assets().items()}
    assert sum(len(text.encode()) for text in found.values()) < 100_000
    for name, text in found.items():
        addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", re.sub(r"(?m)^\s*//.*$|[;,{}] //.*$", "", text)))
        assert addresses <= {"http://www.w3.org"}, name  # the name of a namespace
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "style=",
            "onclick=",
            "<style",
        ):
            assert word not in text, (name, word)
    wanted = set(re.findall(r'(?:href|src)="/board/([^"]+)"', found[PAGE]))
    assert wanted == set(found) - {PAGE}  # all are asked for at once, none is missing
    for name, text in found.items():
        assert set(re.findall(r'from "\./([^"]+)"', text)) <= wanted, name
