from __future__ import annotations

import pickle
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_route.errors import ConfigError
from ray_route.store.url import parse_url

SECRET = "hunter2-p4ss"


@pytest.mark.parametrize(
    ("url", "kind", "nodes", "tls"),
    [
        ("redis://host", "standalone", (("host", 6379),), False),
        ("redis://host:7000/3", "standalone", (("host", 7000),), False),
        ("rediss://host:7000", "standalone", (("host", 7000),), True),
        ("redis+cluster://h1:1,h2:2,h3", "cluster", (("h1", 1), ("h2", 2), ("h3", 6379)), False),
        ("rediss+cluster://h1:1", "cluster", (("h1", 1),), True),
        ("redis+sentinel://h1:1,h2/svc", "sentinel", (("h1", 1), ("h2", 26379)), False),
        ("rediss+sentinel://h1/svc", "sentinel", (("h1", 26379),), True),
        ("redis://[::1]:7000/0", "standalone", (("::1", 7000),), False),
    ],
)
def test_every_scheme_names_its_nodes(url: str, kind: str, nodes: tuple, tls):
    parsed = parse_url(url)
    assert (parsed.kind, parsed.nodes, parsed.tls) == (kind, nodes, tls)


def test_the_path_is_a_database_or_a_sentinel_service():
    assert parse_url("redis://host").db == 0
    assert parse_url("redis://host/0").db == 0
    assert parse_url("redis://host/15").db == 15
    assert parse_url("redis+sentinel://h1,h2/my-service").service == "my-service"
    assert parse_url("redis+cluster://h1/0").client_options().get("db") is None


@pytest.mark.parametrize(
    ("credentials", "expected"),
    [
        ("", (None, None)),
        ("user:pw@", ("user", "pw")),
        (":pw@", (None, "pw")),
        ("user@", ("user", None)),
        ("a%40b:c%3Ad%2Fe%3Ff%23@", ("a@b", "c:d/e?f#")),
        (":%25@", (None, "%")),
        (":%F0%9F%99%82@", (None, "🙂")),
        (":p@ss@", (None, "p@ss")),
        (":p:w@", (None, "p:w")),
        (":p+w@", (None, "p+w")),
    ],
)
@pytest.mark.parametrize("rest", ["host:7000/2", "h1,h2/5"])
def test_user_name_and_password_are_percent_decoded(credentials: str, expected: tuple, rest: str):
    scheme = "redis+sentinel" if "," in rest else "redis"
    parsed = parse_url(f"{scheme}://{credentials}{rest}")
    assert (parsed.username, parsed.password) == expected
    options = parsed.client_options()
    assert (options["username"], options["password"]) == expected


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_quoted_password_comes_back_whole_and_is_not_shown(password: str):
    parsed = parse_url(f"redis://:{quote(password, safe='')}@host:7000/0")
    assert parsed.password == password
    assert repr(parsed) == repr(parse_url("redis://:x@host:7000/0"))
    assert parsed.address == "host:7000"


@pytest.mark.parametrize("scheme", ["redis", "rediss+cluster", "redis+sentinel"])
def test_no_text_of_a_parsed_url_holds_user_name_or_password(scheme: str):
    path = "/svc" if "sentinel" in scheme else ""
    parsed = parse_url(f"{scheme}://admin-name:{SECRET}@h1:1{path}")
    for text in (repr(parsed), str(parsed), parsed.address, f"{parsed}"):
        assert SECRET not in text
        assert "admin-name" not in text


def test_an_address_names_all_nodes_and_the_service():
    assert parse_url("redis+sentinel://:pw@h1:1,h2:2/svc").address == "h1:1,h2:2/svc"


def test_tls_options_reach_the_client():
    url = "rediss://host?ssl_ca_certs=/etc/ca%20x.pem&ssl_cert_reqs=none"
    options = parse_url(url).client_options()
    assert options["ssl"] is True
    assert options["ssl_ca_certs"] == "/etc/ca x.pem"
    assert options["ssl_cert_reqs"] == "none"
    assert "ssl" not in parse_url("redis://host").client_options()


def test_a_url_survives_pickling():
    parsed = parse_url(f"redis+sentinel://u:{SECRET}@h1:1/svc")
    assert pickle.loads(pickle.dumps(parsed)) == parsed


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host:6379",
        "redis:host",
        "redis//host",
        "http://host",
        "REDIS://host",
        "redis://",
        "redis:///0",
        "redis://:pw@",
        "redis://:pw@/0",
        "redis://:pw@host:0",
        "redis://:pw@host:65536",
        "redis://:pw@host:port",
        "redis://:pw@host:1:2",
        "redis://:pw@host:-1",
        "redis://:pw@host/x",
        "redis://:pw@host/-1",
        "redis://:pw@host/1/2",
        "redis://:pw@host/²",
        "redis://[::1",
        "redis+cluster://h1,[::1",
        "redis+cluster://h1,,h2",
        "redis+cluster://h1,",
        "redis+cluster://h1/1",
        "redis+sentinel://h1:1,h2:2",
        "redis+sentinel://h1/",
        "redis://host?db=1",
        "redis://host?ssl_ca_certs=x",
        "rediss://host?ssl=1",
    ],
)
def test_a_bad_url_is_a_config_error(url: str):
    with pytest.raises(ConfigError) as caught:
        parse_url(url)
    assert caught.value.option == "redis_url"


@pytest.mark.parametrize("url", [None, 1, b"redis://host"])
def test_a_url_must_be_a_string(url: object):
    with pytest.raises(ConfigError):
        parse_url(url)


@pytest.mark.parametrize(
    "url",
    [
        f"http://:{SECRET}@host",
        f"{SECRET}@host",
        f"redis://:{SECRET}@host:port",
        f"redis://:{SECRET}@host:0",
        f"redis://:{SECRET}@host/x",
        f"redis://:{SECRET}@",
        f"redis://:{SECRET}@host?db=1",
        f"redis://:{SECRET}/x@host",
        f"redis://host?password={SECRET}",
        f"redis+cluster://:{SECRET}@host/1",
        f"redis+sentinel://:{SECRET}@host",
        f"redis+sentinel://user:{SECRET}/x@host/svc",
        # The ValueErrors of Python's own parser repeat what they were given.
        f"redis://:{SECRET}℀@host",
        f"redis://:{SECRET}[@host",
        f"redis://:{SECRET}]@host",
        "redis://[::1",
        "redis+cluster://h1,[::1",
        # What follows an unquoted "?" is a query.
        f"redis://user:?{SECRET}@host",
        f"redis://user:12?{SECRET}@host",
        f"redis://user:?{SECRET}&x@host",
        f"rediss://user:?{SECRET}@host",
    ],
)
def test_the_error_of_a_bad_url_never_holds_the_password(url: str):
    with pytest.raises(ConfigError) as caught:
        parse_url(url)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in f"{error} {error!r}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
