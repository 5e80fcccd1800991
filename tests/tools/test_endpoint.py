"""Which addresses are dialled."""

from __future__ import annotations

import pytest

from behestd.tools.endpoint import EndpointRefused, Rules, target

LOCAL = Rules(allow_loopback=True)


@pytest.mark.parametrize(
    ("address", "dialled"),
    [
        ("127.0.0.1:7801", "ipv4:127.0.0.1:7801"),
        ("127.9.9.9:1", "ipv4:127.9.9.9:1"),
        ("[::1]:7801", "ipv6:[::1]:7801"),
        ("[::ffff:127.0.0.1]:80", "ipv4:127.0.0.1:80"),
        ("localhost:7801", "dns:///localhost:7801"),
    ],
)
def test_loopback_is_dialled_in_plaintext_in_local_mode(address: str, dialled: str) -> None:
    assert target(address, LOCAL, has_tls=False) == dialled
    with pytest.raises(EndpointRefused) as refused:
        target(address, Rules(), has_tls=True)
    assert refused.value.reason == "TOOL_ENDPOINT_REFUSED"


def test_other_hosts_are_dialled_with_tls_only() -> None:
    assert target("tools.example.org:443", Rules(), has_tls=True) == "dns:///tools.example.org:443"
    assert target("192.0.2.7:443", Rules(), has_tls=True) == "ipv4:192.0.2.7:443"
    with pytest.raises(EndpointRefused):
        target("tools.example.org:443", LOCAL, has_tls=False)


def test_a_socket_is_dialled_when_the_configuration_says_so() -> None:
    assert target("unix:/run/tools.sock", Rules(allow_unix=True), has_tls=False) == "unix:/run/tools.sock"
    for address in ("unix:tools.sock", "unix://host/path"):
        with pytest.raises(EndpointRefused):
            target(address, Rules(allow_unix=True), has_tls=False)


@pytest.mark.parametrize(
    "address",
    [
        "", ":80", "host", "host:", "host:0", "host:65536", "host:-1", "host:+1", "host:٣", "host:80 ",
        "unix:/run/x.sock", "unix-abstract:x", "xds:///host:80", "dns:///host:80", "file:///etc/passwd",
        "http://host:80", "ipv4:127.0.0.1:80", "vsock:1:2", "passthrough:///x:1", "user@host:80", "host/path:80",
        "host%00:80",
        "ho st:80",
        "::1:80", "[::1:80", "[host]:80", "[::1%lo]:80", "2130706433:80", "0x7f.1:80", "127.1:80", "0177.0.0.1:80",
        "127.0.0.1.:80", "169.254.169.254:80", "[fe80::1]:80", "0.0.0.0:80", "[::]:80", "224.0.0.1:80",
        "[::ffff:169.254.169.254]:80", "host,evil:80", "host\n:80", "-host:80", "a" * 64 + ":80",
    ],
)  # fmt: skip
def test_what_is_no_plain_host_and_port_is_refused(address: str) -> None:
    with pytest.raises(EndpointRefused) as refused:
        target(address, LOCAL, has_tls=True)
    assert refused.value.reason == "TOOL_ENDPOINT_REFUSED"
