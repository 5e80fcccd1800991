"""What the configuration says of TLS and credentials: what becomes of it, and what is refused, with its key."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from behest.v1.definition_pb2 import PermissionAction
from behestd.cli import Commands
from behestd.config.source import ConfigInvalid, Origin
from behestd.plan import Plan
from behestd.planning import plan as planning
from behestd.service.credentials import digest, new_token
from behestd.service.scopes import ROLES
from tests.auth.authority import Authority
from tests.auth.test_signed_tokens import KEYS, signed

AUTHORITY = Authority()
TOKEN = new_token()
ENTRY = f"""
[[auth.tokens]]
id = "{TOKEN.token_id}"
hash = "{TOKEN.stored}"
principal = "ann"
namespace = "acme"
"""
TLS = """
[server.tls]
certificate = "file:{home}/server.pem"
key = "file:{home}/server.key"
"""
CERTIFIED = '[[auth.certificates]]\nuri = "spiffe://example.org/ci"\nprincipal = "ci"\nrole = "user"\n'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with a certificate and its key."""
    AUTHORITY.server().write(tmp_path, "server")
    (tmp_path / "ca.pem").write_bytes(AUTHORITY.certificate)
    return tmp_path


def planned(home: Path, text: str, **environ: str) -> Plan:
    """Make the plan of a configuration."""
    file = home / "behestd.toml"
    file.write_text(text.replace("{home}", str(home)))
    return planning.plan(Origin(file, {"HOME": str(home), **environ}).load())


def problem(home: Path, text: str) -> str:
    """Make a plan that cannot be made, and return what is told of it."""
    with pytest.raises(ConfigInvalid) as caught:
        planned(home, text)
    assert caught.value.reason == "RUNTIME_CONFIG_INVALID"
    (told,) = caught.value.problems
    return f"{told.key}: {told.text}"


def test_a_token_stands_for_a_principal_in_a_namespace_with_role_and_scopes(home: Path) -> None:  # C139, C140
    more = 'role = "reader"\nscopes = ["runs:create"]\nexpires = 2099-01-01T00:00:00Z\n'
    plan = planned(home, ENTRY + more)
    token = plan.credentials.tokens[TOKEN.token_id]
    assert token.digest == digest(TOKEN.text)
    caller = token.caller
    assert (caller.principal, caller.namespace, caller.credential) == ("ann", "acme", f"token:{TOKEN.token_id}")
    assert caller.scopes == ROLES["reader"] | {"runs:create"}
    assert caller.expires_ns == 4_070_908_800_000_000_000
    assert not plan.is_local


def test_roles_of_ones_own_hold_the_scopes_that_they_say(home: Path) -> None:
    plan = planned(home, f'[auth.roles]\nlistener = ["runs:read"]\n{ENTRY}role = "listener"\n')
    assert plan.credentials.tokens[TOKEN.token_id].caller.scopes == {"runs:read"}


def test_tokens_can_be_in_a_file_of_their_own_that_everybody_may_read_and_nobody_else_change(home: Path) -> None:  # S20
    file = home / "tokens.toml"
    file.write_text(ENTRY + 'role = "user"\n')
    file.chmod(0o644)
    text = f'[auth]\ntokens_file = "file:{file}"\n'
    assert list(planned(home, text).credentials.tokens) == [TOKEN.token_id]
    file.chmod(0o646)
    assert problem(home, text).startswith("auth.tokens_file: ")
    file.chmod(0o600)
    for wrong in ("", "[[tokens]]\n", "nonsense", ENTRY):
        file.write_text(wrong)
        assert problem(home, text).startswith("auth.tokens_file: ")


def test_certificates_and_signed_tokens_are_credentials_too(home: Path) -> None:  # S2
    plan = planned(home, f'{TLS}client_ca = "file:{{home}}/ca.pem"\n{CERTIFIED}')
    assert plan.credentials.certificates["spiffe://example.org/ci"].scopes == ROLES["user"]
    assert plan.tls is not None
    assert plan.tls.client_authorities.strip() == AUTHORITY.certificate.strip()
    (home / "keys.json").write_text(KEYS)
    jwt = f'[auth.jwt]\nissuer = "https://login.example.org"\naudience = "behest"\nkeys = "file:{home}/keys.json"\n'
    plan = planned(home, f'{jwt}namespace_claim = "org"\n')
    assert plan.credentials.signed is not None
    assert plan.credentials.signed.caller(signed()).namespace == "acme"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[server]\nlisten = ["0.0.0.0:0"]\n', "server.listen[0]"),
        (f'[server]\nlisten = ["0.0.0.0:0"]\n{ENTRY}role = "user"\n', "server.listen[0]"),
        (f'[server]\nlisten = ["127.0.0.1:0", "[::]:0"]\n{TLS}', "server.listen[1]"),
        (f'{ENTRY}role = "emperor"\n', "auth.tokens[0]"),
        (ENTRY, "auth.tokens[0]"),
        (f'{ENTRY}scopes = ["runs:everything"]\n', "auth.tokens[0].scopes[0]"),
        (f'{ENTRY}role = "user"\nexpires = "tomorrow"\n', "auth.tokens[0].expires"),
        (f'{ENTRY}role = "user"\nexpires = 2099-01-01T00:00:00\n', "auth.tokens[0].expires"),
        (f'{ENTRY}role = "user"\n{ENTRY}role = "user"\n', "auth.tokens[1]"),
        (ENTRY.replace("sha256:", "md5:") + 'role = "user"\n', "auth.tokens[0].hash"),
        (ENTRY.replace('"ann"', '"a\\nb"') + 'role = "user"\n', "auth.tokens[0].principal"),
        (ENTRY.replace('"acme"', '"../acme"') + 'role = "user"\n', "auth.tokens[0].namespace"),
        ('[auth.roles]\nadmin = ["runs:read"]\n', "auth"),
        (CERTIFIED, "auth.certificates"),
        (f"{TLS}{CERTIFIED}", "auth.certificates"),
        (f'{TLS}client_ca = "file:{{home}}/ca.pem"\n{CERTIFIED}{CERTIFIED}', "auth.certificates"),
        (f'{TLS}client_ca = "file:{{home}}/server.key"\n', "server.tls.client_ca"),
        (TLS.replace("server.key", "server.pem"), "server.tls.key"),
        (TLS.replace("server.key", "nothing.key"), "server.tls.key"),
        ('[auth.jwt]\nissuer = "i"\naudience = "a"\nkeys = "file:{home}/ca.pem"\n', "auth.jwt.keys"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_key(home: Path, text: str, key: str) -> None:  # S1
    told = problem(home, text)
    assert told.startswith(f"{key}: ")
    assert TOKEN.text not in told


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("", PermissionAction.PERMISSION_ACTION_ALLOW),
        (f'{ENTRY}role = "user"\n', PermissionAction.PERMISSION_ACTION_ASK),
        (f'[permissions]\ndefault = "deny"\n{ENTRY}role = "user"\n', PermissionAction.PERMISSION_ACTION_DENY),
    ],
)
def test_what_no_rule_matches_is_allowed_in_local_mode_and_asked_for_beyond(
    home: Path, text: str, action: PermissionAction.ValueType
) -> None:  # S10
    assert planned(home, text).operator.default_permission == action


def command(home: Path, *arguments: str) -> Result:
    """Run a command of the daemon to its end."""
    environ = {name: None for name in os.environ if name.startswith(("BEHEST", "XDG_"))}
    return CliRunner(env={**environ, "HOME": str(home)}).invoke(Commands(), arguments)


def test_a_new_token_is_shown_once_and_its_entry_holds_nothing_of_it(home: Path) -> None:  # C139, S3, S9
    made = command(home, "token", "new", "--principal", "ann", "--role", "user", "--expires", "90d")
    assert made.exit_code == 0
    text = made.stderr.split()[-1]
    assert text not in made.stdout
    assert text[16:] not in made.stdout
    known = planned(home, made.stdout).credentials
    token = known.token(text)
    assert token is not None
    assert (token.caller.principal, token.caller.scopes) == ("ann", ROLES["user"])
    assert token.caller.expires_ns > 0
    kept = home / "token"
    again = command(home, "token", "new", "--principal", "ci", "--scope", "runs:read", "--token-file", str(kept))
    assert again.exit_code == 0
    assert again.stderr == ""
    assert kept.stat().st_mode & 0o777 == 0o600
    assert planned(home, again.stdout).credentials.token(kept.read_text().strip()) is not None
    both = tomllib.loads(made.stdout + again.stdout)
    assert len(both["auth"]["tokens"]) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("--principal", "ann"),
        ("--principal", "a b", "--role", "user"),
        ("--principal", "ann", "--scope", "all"),
        ("--principal", "ann", "--role", "user", "--expires", "soon"),
        ("--principal", "ann", "--role", "user", "--token-file", "/proc/nowhere/token"),
    ],
)
def test_a_token_that_would_be_no_use_is_not_made(home: Path, arguments: tuple[str, ...]) -> None:
    made = command(home, "token", "new", *arguments)
    assert made.exit_code == 2
    assert "behest_" not in made.stdout + made.stderr


def test_check_config_reads_certificates_and_tokens_and_shows_no_secret(home: Path) -> None:  # S9
    file = home / "behestd.toml"
    text = (TLS + ENTRY + 'role = "user"\n').replace("{home}", str(home))
    file.write_text(text)
    shown = command(home, "check-config", "--config", str(file))
    assert shown.exit_code == 0
    assert "BEGIN" not in shown.stdout
    file.write_text(text.replace("server.key", "server.pem"))
    (home / "server.pem").chmod(0o600)
    refused = command(home, "check-config", "--config", str(file))
    assert refused.exit_code == 78
    assert "server.tls.key" in refused.stderr


def test_the_environment_can_say_it_too(home: Path) -> None:
    entry: dict[str, Any] = {
        "id": TOKEN.token_id,
        "hash": TOKEN.stored,
        "principal": "ann",
        "role": "user",
        "expires": "2099-01-01T00:00:00Z",
    }
    plan = planned(home, "", BEHEST__AUTH__TOKENS=json.dumps([entry]))
    assert list(plan.credentials.tokens) == [TOKEN.token_id]
