"""Which addresses are dialled."""

from __future__ import annotations

import pytest

from behestd.wire.endpoint import AllowList, EndpointRefused, Rules, allow_list, check

LOCAL = Rules(allow_loopback=True)
CONFIGURED = Rules(allow_loopback=True, allow_unix=True, allow_private=True)
PUBLIC = "93.184.216.34"
PUBLIC_V6 = "2606:2800:220:1:248:1893:25c8:1946"

NOT_PUBLIC = (
    "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.254", "192.168.0.1", "100.64.0.1", "100.127.255.254",
    "0.1.2.3", "192.0.0.8", "192.0.2.7", "192.88.99.1", "198.18.0.1", "198.19.255.254", "198.51.100.7", "203.0.113.7",
    "240.0.0.1", "fc00::1", "fd12:3456::1", "fec0::1", "100::1", "2001:db8::1", "2001::1", "2002:7f00:1::1",
    "2002:a00:1::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "::7f00:1", "::ffff:0:7f00:1", "3fff::1",
    "::ffff:10.0.0.1", "::ffff:192.168.1.1",
)  # fmt: skip
SECRETIVE = (
    "169.254.169.254", "169.254.170.2", "169.254.0.1", "fe80::1", "::ffff:169.254.169.254", "fd00:ec2::254",
    "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192",
)  # fmt: skip
NEVER = ("0.0.0.0", "::", "224.0.0.1", "239.1.2.3", "255.255.255.255", "ff02::1", "::ffff:224.0.0.1")
LOOPBACK = ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1")


def place(literal: str) -> str:
    return f"[{literal}]:443" if ":" in literal else f"{literal}:443"


def rule(address: str, rules: Rules, *, has_tls: bool = True) -> str:
    """The rule that refuses an address, and checks that it is told."""
    with pytest.raises(EndpointRefused) as refused:
        check(address, rules, has_tls=has_tls)
    return told(refused.value)


def rule_of(found: list[str], rules: Rules, host: str = "tools.example.org") -> str:
    """The rule that refuses a name for what it stands for."""
    with pytest.raises(EndpointRefused) as refused:
        check(f"{host}:443", rules, has_tls=True).targets(found)
    return told(refused.value)


def told(refused: EndpointRefused) -> str:
    assert refused.reason == "TOOL_ENDPOINT_REFUSED"
    return refused.metadata["rule"]


@pytest.mark.parametrize(
    ("address", "dialled"),
    [
        ("127.0.0.1:7801", "ipv4:127.0.0.1:7801"),
        ("127.9.9.9:1", "ipv4:127.9.9.9:1"),
        ("[::1]:7801", "ipv6:[::1]:7801"),
        ("[::ffff:127.0.0.1]:80", "ipv4:127.0.0.1:80"),
    ],
)
def test_loopback_is_dialled_in_plaintext_in_local_mode(address: str, dialled: str) -> None:
    assert check(address, LOCAL, has_tls=False).target == dialled
    assert rule(address, Rules()) == "loopback is allowed in local mode only"


def test_localhost_is_dialled_in_plaintext_only_as_loopback() -> None:
    endpoint = check("localhost:7801", LOCAL, has_tls=False)
    assert endpoint.target == ""
    assert endpoint.targets(["::1", "127.0.0.1"]) == ("ipv6:[::1]:7801", "ipv4:127.0.0.1:7801")
    for found in (["127.0.0.1", PUBLIC], ["10.0.0.1"]):
        with pytest.raises(EndpointRefused) as refused:
            endpoint.targets(found)
        assert told(refused.value) == "plaintext is allowed to loopback only"
    assert rule("localhost:7801", Rules()) == "loopback is allowed in local mode only"


def test_other_hosts_are_dialled_with_tls_only() -> None:  # S8
    assert check(place(PUBLIC), Rules(), has_tls=True).target == f"ipv4:{PUBLIC}:443"
    assert check(place(PUBLIC_V6), Rules(), has_tls=True).target == f"ipv6:[{PUBLIC_V6}]:443"
    for address in ("tools.example.org:443", place(PUBLIC), place("10.0.0.1"), place(PUBLIC_V6)):
        for rules in (LOCAL, CONFIGURED, Rules(allowed=allow_list([PUBLIC, "10.0.0.0/8", "tools.example.org"]))):
            assert rule(address, rules, has_tls=False) == "plaintext is allowed to loopback only"


def test_a_name_is_dialled_by_the_addresses_that_were_judged() -> None:  # S8
    endpoint = check("tools.example.org:443", Rules(), has_tls=True)
    assert endpoint.targets([PUBLIC]) == (f"ipv4:{PUBLIC}:443",)
    assert endpoint.targets([PUBLIC, PUBLIC_V6, PUBLIC, "8.8.8.8"]) == (
        f"ipv4:{PUBLIC}:443,8.8.8.8:443",
        f"ipv6:[{PUBLIC_V6}]:443",
    )


def test_a_socket_is_dialled_when_the_configuration_says_so() -> None:
    assert check("unix:/run/tools.sock", CONFIGURED, has_tls=False).target == "unix:/run/tools.sock"
    for address in ("unix:tools.sock", "unix://host/path"):
        assert rule(address, CONFIGURED) == "unix: needs an absolute path"
    assert rule("unix:/run/tools.sock", LOCAL) == "unix: is taken from the configuration only"


@pytest.mark.parametrize(
    "address",
    [
        "", ":80", "host", "host:", "host:0", "host:65536", "host:-1", "host:+1", "host:٣", "host:80 ",
        "unix:/run/x.sock", "unix-abstract:x", "xds:///host:80", "dns:///host:80", "file:///etc/passwd",
        "http://host:80", "ipv4:127.0.0.1:80", "vsock:1:2", "passthrough:///x:1", "user@host:80", "host/path:80",
        "host%00:80", "google-c2p:///x:1", "dns:host:80", "ipv6:[::1]:80", "ipv4:1.2.3.4:1,127.0.0.1:2",
        "ho st:80",
        "::1:80", "[::1:80", "[host]:80", "[::1%lo]:80", "2130706433:80", "0x7f.1:80", "127.1:80", "0177.0.0.1:80",
        "0x7f000001:80", "017700000001:80", "127.0.0.0x1:80", "1.2.3:80", "[::ffff:7f00:1%1]:80",
        "127.0.0.1.:80", "0.0.0.0:80", "[::]:80", "224.0.0.1:80", "①27.0.0.1:80", "127。0。0。1:80",
        "host,evil:80", "host\n:80", "-host:80", "a" * 64 + ":80", "a." * 127 + "a:80", "host#@evil:80", "host?x:80",
    ],
)  # fmt: skip
def test_what_is_no_plain_host_and_port_is_refused(address: str) -> None:  # S8
    assert rule(address, LOCAL)


@pytest.mark.parametrize("literal", NOT_PUBLIC)
def test_an_address_that_is_not_public_is_refused_written_and_looked_up(literal: str) -> None:  # S8
    expected = "addresses that are not public are called only when they are allowed"
    for rules in (Rules(), LOCAL):
        assert rule(place(literal), rules) == expected
        assert rule_of([literal], rules) == expected
        assert rule_of([PUBLIC, literal], rules) == expected


@pytest.mark.parametrize("literal", SECRETIVE)
def test_link_local_and_metadata_are_refused_even_to_the_configuration(literal: str) -> None:  # S8
    expected = "link-local and metadata addresses are called only when they are allowed"
    wide = allow_list(["0.0.0.0/0", "::/0"])
    for rules in (Rules(), LOCAL, CONFIGURED):
        assert rule(place(literal), rules) == expected
        assert rule_of([literal], rules) == expected
        assert rule_of([PUBLIC, literal], rules) == expected
    bare = literal.removeprefix("::ffff:")
    assert check(place(literal), Rules(allowed=allow_list([bare])), has_tls=True).target
    if bare not in ("169.254.0.1", "fe80::1"):
        assert rule(place(literal), Rules(allowed=wide)) == expected


@pytest.mark.parametrize("literal", NEVER)
def test_what_is_nobodys_address_is_never_dialled(literal: str) -> None:  # S8
    for rules in (Rules(), LOCAL, CONFIGURED, Rules(allowed=allow_list(["0.0.0.0/0", "::/0"]))):
        assert rule(place(literal), rules) == "not the address of a server"
        assert rule_of([literal], rules) == "not the address of a server"


@pytest.mark.parametrize("literal", LOOPBACK)
def test_a_name_does_not_lead_to_loopback_beyond_local_mode(literal: str) -> None:  # S8
    assert rule_of([literal], Rules()) == "loopback is allowed in local mode only"
    assert rule_of([PUBLIC, literal], Rules()) == "loopback is allowed in local mode only"
    assert rule(place(literal), Rules()) == "loopback is allowed in local mode only"
    assert check(place(literal), Rules(allowed=allow_list(["127.0.0.0/8", "::1"])), has_tls=False).target


@pytest.mark.parametrize("found", [[], ["no address"], [PUBLIC, ""], ["fe80::1%eth0"], ["2130706433"]])
def test_a_name_that_stands_for_no_address_is_refused(found: list[str]) -> None:
    assert rule_of(found, CONFIGURED) == "its name stands for no IP address"


def test_a_refusal_does_not_tell_what_a_name_stands_for() -> None:
    with pytest.raises(EndpointRefused) as refused:
        check("inside.example.org:443", Rules(), has_tls=True).targets(["10.1.2.3"])
    assert "10.1.2.3" not in f"{refused.value} {refused.value.metadata}"


def test_only_what_is_on_the_list_is_dialled_when_there_is_one() -> None:
    rules = Rules(allowed=allow_list(["*.example.org", "tools.test", "10.1.0.0/16", "2606:2800::/32"]))
    off = "it is not on the list of what is allowed"
    for host in ("a.example.org", "a.b.example.org", "TOOLS.test"):
        assert check(f"{host}:443", rules, has_tls=True).targets([PUBLIC])
        # A name is no word about addresses that are not public.
        assert "not public" in rule_of(["10.2.0.1"], rules, host)
        assert check(f"{host}:443", rules, has_tls=True).targets(["10.1.2.3"])
    for host in ("example.org", "tools.test.evil.com", "notexample.org", "x.tools.test"):
        assert rule_of([PUBLIC], rules, host) == off
        assert check(f"{host}:443", rules, has_tls=True).targets(["10.1.2.3", PUBLIC_V6])
    assert check("10.1.2.3:443", rules, has_tls=True).target == "ipv4:10.1.2.3:443"
    assert rule(place(PUBLIC), rules) == off
    assert "not public" in rule("10.2.0.1:443", rules)
    only_names = Rules(allowed=allow_list(["tools.test"]))
    assert rule("other.test:443", only_names) == off
    local = Rules(allow_loopback=True, allowed=allow_list(["tools.test"]))
    assert check("127.0.0.1:1", local, has_tls=False).target
    assert check("localhost:1", local, has_tls=False).targets(["127.0.0.1"])


def test_the_configuration_names_private_servers_whatever_callers_may() -> None:
    rules = Rules(allow_loopback=True, allow_unix=True, allow_private=True, allowed=allow_list(["tools.test"]))
    assert check("10.0.0.1:443", rules, has_tls=True).target == "ipv4:10.0.0.1:443"
    assert check("inside.example.org:443", rules, has_tls=True).targets(["192.168.1.1"])


@pytest.mark.parametrize("entry", ["", "*", "*.", "a b", "*.*.org", "10.0.0.0/33", "10.0.0.1/8", "host:80", "é.org"])
def test_an_entry_that_is_no_name_and_no_network_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="is no name, no address and no network"):
        allow_list([entry])


def test_an_empty_list_restricts_nothing() -> None:
    assert allow_list([]) == AllowList()
    assert AllowList().is_empty
