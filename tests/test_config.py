"""Configuration: layers and their sources, unknown keys, secrets, what settings become; the reference is current."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from behest.v1.definition_pb2 import Limits as RunLimits
from behest.v1.definition_pb2 import PermissionAction
from behest.v1.tool_pb2 import SideEffect
from behestd.config import document, json_schema
from behestd.config.settings import Settings
from behestd.config.source import ConfigInvalid, Configuration, Flag, Origin, data_dir
from behestd.core import limits as core_limits
from behestd.core.route import RoutePolicy
from behestd.planning import models as planning_models
from behestd.planning import plan as planning
from behestd.planning import tools as planning_tools
from behestd.providers.provider import ProviderTimeouts
from behestd.runtime.admission import Rules
from behestd.runtime.house import Limits
from behestd.secret import Reference
from behestd.service.settings import Settings as Edge
from behestd.tools import policy as policies

ROOT = Path(__file__).resolve().parent.parent
HOME = {"HOME": "/home/someone"}
CANARY = "canary-5f2c9e"


def load(
    text: str = "", environ: Mapping[str, str] | None = None, flags: tuple[Flag, ...] = (), tmp: Path | None = None
) -> Configuration:
    """Load a configuration whose file holds a text."""
    file = None
    if text:
        assert tmp is not None
        file = tmp / "behestd.toml"
        file.write_text(text)
    return Origin(file, {**HOME, **(environ or {})}, flags).load()


def problems(*arguments: Any, **named: Any) -> list[str]:
    """Load what is wrong, and return what is told of it."""
    with pytest.raises(ConfigInvalid) as caught:
        load(*arguments, **named)
    assert caught.value.reason == "RUNTIME_CONFIG_INVALID"
    return [str(problem) for problem in caught.value.problems]


# --- layers (C137) ---


@pytest.mark.parametrize(
    ("key", "file", "variable", "flag"),
    [
        ("limits.active_runs", ("7", 7), ("64", 64), 65),
        ("limits.drain_seconds", ("1.5", 1.5), ("2", 2.0), 3.0),
        ("storage.kind", ('"memory"', "memory"), ("sqlite", "sqlite"), "memory"),
        ("server.listen", ('["[::1]:1"]', ("[::1]:1",)), ('["[::1]:2"]', ("[::1]:2",)), ["[::1]:4"]),
        ("extensions.modules", ('["a"]', ("a",)), ('["b.c"]', ("b.c",)), []),
        ("server.ready_fd", ("4", 4), ("5", 5), 6),
        ("models.aliases.fast", ('"x/one"', "x/one"), ("x/two", "x/two"), "x/three"),
        ("limits.run.max_steps", ("11", 11), ("12", 12), 13),
        ("permissions.own_approvals", ("true", True), ("false", False), True),
        ("models.fallbacks", ('{"a" = ["b"]}', {"a": ("b",)}), ('{"a" = ["c"]}', {"a": ("c",)}), {"a": ["d"]}),
    ],
)  # fmt: skip
def test_each_layer_goes_over_the_one_before(  # C137
    tmp_path: Path, key: str, file: tuple[str, Any], variable: tuple[str, Any], flag: Any
) -> None:
    table, _, name = key.rpartition(".")
    text = f"[{table}]\n{name} = {file[0]}\n"
    environ = {f"BEHEST__{key.replace('.', '__').upper()}": variable[0]}

    def value(found: Configuration) -> tuple[Any, str]:
        here: Any = found.settings
        for part in key.split("."):
            here = here[part] if isinstance(here, Mapping) else getattr(here, part)
        return here, found.source(tuple(key.split(".")))

    assert load().source(tuple(key.split("."))) == "default"
    assert value(load(text, tmp=tmp_path)) == (file[1], str(tmp_path / "behestd.toml"))
    assert value(load(text, environ, tmp=tmp_path)) == (variable[1], next(iter(environ)))
    wanted = tuple(flag) if isinstance(flag, list) else {"a": ("d",)} if isinstance(flag, dict) else flag
    assert value(load(text, environ, (Flag("--it", key, flag),), tmp_path)) == (wanted, "--it")


def test_a_secret_is_named_by_each_layer_over_the_one_before(tmp_path: Path) -> None:  # C137, C138
    text = PROVIDER + f'api_key = "file:{secret_file(tmp_path)}"\n'
    environ = {"BEHEST__PROVIDERS__X__API_KEY": "env:KEY_ONE", "KEY_ONE": f"{CANARY}-1", "KEY_TWO": f"{CANARY}-2"}
    flags = (Flag("--it", "providers.x.api_key", "env:KEY_TWO"),)
    key = ("providers", "x", "api_key")
    assert load().settings.providers == {}
    for found, source, secret in (
        (load(text, tmp=tmp_path), str(tmp_path / "behestd.toml"), CANARY),
        (load(text, environ, tmp=tmp_path), "BEHEST__PROVIDERS__X__API_KEY", f"{CANARY}-1"),
        (load(text, environ, flags, tmp_path), "--it", f"{CANARY}-2"),
    ):
        reference = found.settings.providers["x"].api_key
        assert isinstance(reference, Reference)
        assert (found.source(key), found.vault.read(reference).reveal()) == (source, secret)
        assert secret not in str([entry.value for entry in found.effective()])


@pytest.mark.parametrize(("text", "wanted"), [("true", True), ("false", False)])
def test_a_truth_value_comes_from_file_and_environment(tmp_path: Path, text: str, wanted: bool) -> None:  # C137
    key = "tools.policies.poll.doom_loop_exempt"
    of_file = load(f"{key} = {text}", tmp=tmp_path)
    of_environment = load(environ={"BEHEST__TOOLS__POLICIES__POLL__DOOM_LOOP_EXEMPT": text})
    for found in (of_file, of_environment):
        assert found.settings.tools.policies["poll"].doom_loop_exempt is wanted


def test_tables_are_merged_and_lists_are_replaced(tmp_path: Path) -> None:
    found = load(
        '[server]\nlisten = ["127.0.0.1:1", "127.0.0.1:2"]\n[tools.policies.a]\nside_effect = "pure"\n',
        {
            "BEHEST__TOOLS__POLICIES": '{"files_*": {"side_effect": "idempotent"}}',
            "BEHEST__SERVER__LISTEN": "['[::1]:3']",
        },
        tmp=tmp_path,
    )
    assert list(found.settings.tools.policies) == ["a", "files_*"]
    assert found.settings.server.listen == ("[::1]:3",)
    sources = {entry.key: entry.source for entry in found.effective()}
    assert sources["tools.policies.a.side_effect"] == str(tmp_path / "behestd.toml")
    assert sources['tools.policies."files_*".side_effect'] == "BEHEST__TOOLS__POLICIES"
    assert sources["tools.policies.a.exclusive"] == "default"


def test_other_variables_are_left_alone() -> None:
    environ = {"BEHEST_ADDRESS": "x", "BEHEST_FP": "y", "OTHER__THING": "z"}
    assert load(environ=environ).settings == load().settings


def test_the_settings_in_force_can_be_read_back_as_a_file(tmp_path: Path) -> None:
    found = load(
        '[providers.local]\nkind = "openai"\nbase_url = "http://127.0.0.1:1/v1"\nmodels = ["a", {name = "b"}]\n'
        '[tools.policies."x_*"]\nexclusive = true\n[[tools.servers]]\nname = "s"\naddress = "127.0.0.1:5"\n'
        '[[admission.reject]]\nname = "r"\npattern = "a\\"\\\\d"\n',
        tmp=tmp_path,
    )
    lines = [f"{entry.key} = {document.toml(entry.value)}" for entry in found.effective() if entry.value is not None]
    assert load("\n".join(lines), tmp=tmp_path).settings == found.settings


# --- what is refused ---


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[limits]\nactive_rums = 1", "FILE: limits.active_rums: unknown key, did you mean active_runs?"),
        ("[limit]\nx = 1", "FILE: limit: unknown key, did you mean limits?"),
        ("[providers.x]\nkind = 'openai'\nurl = 'u'", "FILE: providers.x.url: unknown key"),
        ("providers.x.models = [{nam = 'm'}]", "FILE: providers.x.models[0].nam: unknown key, did you mean name?"),
        ("[tools.policies.'a.b']\nclass = 'pure'", 'FILE: tools.policies."a.b".class: unknown key'),
    ],
)  # fmt: skip
def test_an_unknown_key_is_named_with_its_file(tmp_path: Path, text: str, told: str) -> None:  # C137
    assert told.replace("FILE", str(tmp_path / "behestd.toml")) in problems(text, tmp=tmp_path)


def test_an_unknown_key_is_named_with_its_variable() -> None:  # C137
    assert problems(environ={"BEHEST__LIMITS__ACTIVE": "1"}) == [
        "BEHEST__LIMITS__ACTIVE: limits.active: unknown key, did you mean active_runs?"
    ]
    assert problems(environ={"BEHEST__X": "1"}) == ["BEHEST__X: x: unknown key"]


def test_an_unknown_key_is_named_with_its_flag() -> None:
    assert problems(flags=(Flag("--no", "log.no", 1),)) == ["--no: log.no: unknown key"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("LIMITS__ACTIVE_RUNS", "0"),
        ("LIMITS__ACTIVE_RUNS", '"64"'),
        ("LIMITS__ACTIVE_RUNS", "1.5"),
        ("LIMITS__ACTIVE_RUNS", "true"),
        ("LIMITS__ACTIVE_RUNS", "many"),
        ("LIMITS__ACTIVE_RUNS", "1\nother = 2"),
        ("LIMITS__DRAIN_SECONDS", "inf"),
        ("LIMITS__DRAIN_SECONDS", "nan"),
        ("LIMITS__DRAIN_SECONDS", "-1"),
        ("SERVER__LISTEN", "[]"),
        ("SERVER__LISTEN", '["0.0.0.0:7717"]'),
        ("SERVER__LISTEN", '["localhost"]'),
        ("SERVER__UNIX", "relative"),
        ("STORAGE__KIND", "postgres"),
        ("LOG__LEVEL", "INFO"),
        ("ADMISSION__REJECT", '[{"name": "x", "pattern": "("}]'),
        ("PROVIDERS__SCRIPTED__KIND", "openai"),
        ("PROVIDERS__LOCAL", '{"kind": "scripted", "base_url": "http://127.0.0.1/"}'),
        ("PROVIDERS__LOCAL", '{"kind": "openai", "base_url": "http://user:pass@127.0.0.1/"}'),
        ("TOOLS__SERVERS", '[{"name": "a", "address": "x"}, {"name": "a", "address": "y"}]'),
        ("SERVER", "7"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_with_its_key(key: str, value: str) -> None:
    (told,) = problems(environ={f"BEHEST__{key}": value})
    assert told.startswith(f"BEHEST__{key}: ") or key.startswith("PROVIDERS__SCRIPTED")


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    assert len(problems("[limits]\nactive_runs = 0\nqueued_runs = 0\nx = 1", tmp=tmp_path)) == 3


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for text in ("[limits\n", "a = 1\na = 2\n"):
        (told,) = problems(text, tmp=tmp_path)
        assert told.startswith(f"{tmp_path / 'behestd.toml'}: it is no TOML")
    with pytest.raises(ConfigInvalid):
        Origin(tmp_path / "missing.toml").load()


# --- secrets (C138) ---

PROVIDER = '[providers.x]\nkind = "openai"\nmodels = ["m"]\n'


def secret_file(tmp_path: Path, mode: int = 0o600, text: str = CANARY + "\n") -> Path:
    """Write a file with a secret."""
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_secret_is_read_from_environment_file_and_credential(tmp_path: Path) -> None:  # C138
    path = secret_file(tmp_path)
    for reference in ("env:KEY", f"file:{path}", "credential:key"):
        environ = {"KEY": CANARY, "CREDENTIALS_DIRECTORY": str(tmp_path)}
        found = load(f'{PROVIDER}api_key = "{reference}"', environ, tmp=tmp_path)
        key = found.settings.providers["x"].api_key
        assert key is not None
        assert found.vault.read(key).reveal() == CANARY


@pytest.mark.parametrize(
    "reference", ["env:NOT_SET", "env:EMPTY", "file:/does/not/exist", "file:/dev/null", "credential:key"]
)
def test_a_secret_that_is_not_there_is_named_by_key(tmp_path: Path, reference: str) -> None:  # C138
    (told,) = problems(f'{PROVIDER}api_key = "{reference}"', {"EMPTY": ""}, tmp=tmp_path)
    assert told.startswith(f"{tmp_path / 'behestd.toml'}: providers.x.api_key: {reference}")


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602])
def test_a_secret_that_everybody_can_reach_is_refused(tmp_path: Path, mode: int) -> None:  # S20
    path = secret_file(tmp_path, mode)
    (told,) = problems(f'{PROVIDER}api_key = "file:{path}"', tmp=tmp_path)
    assert f"mode {mode:04o}" in told
    assert CANARY not in told


@pytest.mark.parametrize(
    "text", [CANARY, f"env:{CANARY}", f"vault:{CANARY}", f"file:{CANARY}", f"credential:../{CANARY}"]
)
def test_a_secret_in_the_wrong_place_is_refused_without_being_shown(tmp_path: Path, text: str) -> None:  # C138
    (told,) = problems(f'{PROVIDER}api_key = "{text}"', tmp=tmp_path)
    assert CANARY not in told
    with pytest.raises(ConfigInvalid) as caught:
        load(environ={"BEHEST__PROVIDERS__X__API_KEY": text, "BEHEST__PROVIDERS__X__KIND": "openai"})
    assert CANARY not in repr(caught.value) + str(caught.value.metadata)


def test_secrets_are_shown_nowhere(tmp_path: Path) -> None:  # C137, C138
    text = f'{PROVIDER}api_key = "env:KEY"\nheaders = {{x-one = "{CANARY}", x-two = "env:KEY"}}'
    found = load(text, {"KEY": CANARY}, tmp=tmp_path)
    values = {entry.key: entry.value for entry in found.effective()}
    assert values["providers.x.api_key"] == "env:KEY"
    assert values["providers.x.headers.x-one"] == "***"
    assert values["providers.x.headers.x-two"] == "env:KEY"
    shown = f"{found}{found.settings!r}{found.effective()}{found.settings.model_dump_json()}"
    assert CANARY not in shown
    assert CANARY not in repr(Origin(None, {"KEY": CANARY})) + repr(Reference("text", CANARY))
    provider = planning_models.models(found).provider("x")
    assert CANARY not in repr(provider)


# --- the data directory ---


def test_the_data_directory_follows_systemd_then_xdg_then_home() -> None:
    assert data_dir({**HOME, "STATE_DIRECTORY": "/var/lib/behestd:/other", "XDG_STATE_HOME": "/state"}) == (
        "/var/lib/behestd",
        "STATE_DIRECTORY",
    )
    assert data_dir({**HOME, "XDG_STATE_HOME": "/state"}) == ("/state/behestd", "XDG_STATE_HOME")
    assert data_dir({**HOME, "XDG_STATE_HOME": "relative"}) == ("/home/someone/.local/state/behestd", "default")
    assert load(environ={"BEHEST__STORAGE__DATA_DIR": ""}).settings.storage.data_dir.startswith("/home/someone")


# --- what settings become ---


def test_defaults_are_those_of_the_parts_they_go_to() -> None:
    made = planning.plan(load())
    assert made.limits == Limits()
    assert made.edge == Edge()
    assert made.rules == Rules()
    assert made.model_timeouts == ProviderTimeouts()
    assert made.retries == RoutePolicy(())
    assert core_limits.in_force(RunLimits(), made.operator.limits) == core_limits.DEFAULTS
    policy = load(environ={"BEHEST__TOOLS__POLICIES": '{"a": {}}'}).settings.tools.policies
    assert policies.in_force(planning_tools.tool_policies(policy)["a"], None) == policies.DEFAULTS


def test_every_limit_of_the_runtime_can_be_set() -> None:
    settable = set(type(load().settings.limits).model_fields) | {"duplicate_window_seconds"}
    assert {field.name for field in dataclasses.fields(Limits)} <= settable


def test_an_agent_goes_over_the_operators_limits_and_those_over_the_defaults() -> None:
    made = planning.plan(
        load(environ={"BEHEST__LIMITS__RUN__MAX_STEPS": "3", "BEHEST__LIMITS__RUN__TIMEOUT_SECONDS": "1.5"})
    )
    merged = core_limits.in_force(RunLimits(max_steps=7), made.operator.limits)
    assert (merged.max_steps, merged.timeout.ToNanoseconds()) == (7, 1_500_000_000)
    assert core_limits.in_force(RunLimits(), made.operator.limits).max_steps == 3


def test_providers_and_aliases_make_the_catalog(tmp_path: Path) -> None:
    found = planning_models.models(
        load(
            '[models]\ndefault = "fast"\naliases = {fast = "x/org/m"}\n'
            '[providers.x]\nkind = "openai"\nbase_url = "http://127.0.0.1:1/v1"\n'
            'models = ["plain", {name = "org/m", input_micro_usd = 5, capabilities = ["chat"]}]\n'
            '[providers.second]\nkind = "scripted"\n',
            tmp=tmp_path,
        )
    )
    assert sorted(found.providers) == ["scripted", "second", "x"]
    assert found.resolve("").model.id == "x/org/m"
    assert found.resolve("x/plain").model.capabilities.tools
    assert found.resolve("fast").model.prices[0].input_micro_usd == 5
    assert found.resolve("scripted/echo").model.id == "scripted/echo"


@pytest.mark.parametrize("value", ["nobody/knows", "alias", "scripted/embedd"])
def test_a_default_model_that_nobody_serves_is_refused(value: str) -> None:
    for key in ("DEFAULT", "DEFAULT_EMBEDDING"):
        with pytest.raises(ConfigInvalid) as caught:
            planning_models.models(load(environ={f"BEHEST__MODELS__{key}": value}))
        assert caught.value.metadata == {"key": f"models.{key.lower()}", "source": f"BEHEST__MODELS__{key}"}


def test_permissions_and_policies_become_messages_of_the_contract(tmp_path: Path) -> None:
    found = load(
        '[permissions]\ndefault = "ask"\nrules = [{tool = "rm", action = "deny", arguments = {path = "/*"}}]\n'
        '[tools.policies.add]\nside_effect = "idempotent"\ntimeouts = {heartbeat_seconds = 1.5}\n',
        tmp=tmp_path,
    )
    operator = planning.operator(found.settings)
    assert operator.default_permission == PermissionAction.PERMISSION_ACTION_ASK
    assert operator.permissions[0].arguments == {"path": "/*"}
    policy = planning_tools.tool_policies(found.settings.tools.policies)["add"]
    assert policy.side_effect == SideEffect.SIDE_EFFECT_IDEMPOTENT
    assert policy.timeouts.heartbeat.ToMilliseconds() == 1500
    assert planning.operator(load().settings).default_permission == PermissionAction.PERMISSION_ACTION_ALLOW


def test_a_tool_server_is_dialled_with_its_token_read_when_it_is_sent(tmp_path: Path) -> None:
    path = secret_file(tmp_path)
    text = f'[[tools.servers]]\nname = "files"\naddress = "127.0.0.1:5"\nname_prefix = "f_"\ntoken = "file:{path}"\n'
    made = planning.plan(load(text, tmp=tmp_path))
    (server,) = made.servers
    assert (server.name, server.address, server.token_ref) == ("files", "127.0.0.1:5", f"file:{path}")
    assert made.secrets(server.token_ref) == CANARY
    secret_file(tmp_path, text="rotated")
    assert made.secrets(server.token_ref) == "rotated"
    assert CANARY not in str(made)


def test_a_tool_server_beyond_loopback_needs_tls(tmp_path: Path) -> None:
    text = '[[tools.servers]]\nname = "files"\naddress = "192.0.2.1:5"\n'
    with pytest.raises(ConfigInvalid) as caught:
        planning_tools.tool_servers(load(text, tmp=tmp_path))
    assert caught.value.metadata["key"] == "tools.servers[0].address"
    (server,) = planning_tools.tool_servers(load(f"{text}tls = {{}}\n", tmp=tmp_path))
    assert server.HasField("tls")


# --- the reference ---


def test_the_reference_is_current() -> None:
    written = (ROOT / "docs/configuration.md").read_text()
    assert written == document.markdown(), "run: behestd config-example --markdown > docs/configuration.md"


def test_the_example_changes_nothing_until_it_is_edited(tmp_path: Path) -> None:
    assert load(document.example(), tmp=tmp_path).settings == load().settings


def test_every_line_of_the_example_holds_once_it_is_taken_in() -> None:
    text = re.sub(r"(?m)^#(?=[^ ])", "", document.example())
    assert tomllib.loads(text)["providers"]["local"]["kind"] == "openai"
    # What it names, as a certificate, is not there.
    found = Settings.model_validate(tomllib.loads(text))
    assert found.model_copy(update={"providers": {}}).limits == load().settings.limits
    assert found.tools.servers[0].address == "127.0.0.1:7801"


def test_the_schema_is_current_and_takes_what_the_example_holds() -> None:  # C137
    written = (ROOT / "docs/config.schema.json").read_text()
    assert written == json_schema.written(), "run: behestd config-example --json-schema > docs/config.schema.json"
    checker = jsonschema_rs.validator_for(json_schema.schema())
    text = re.sub(r"(?m)^#(?=[^ ])", "", document.example())
    assert [error.message for error in checker.iter_errors(tomllib.loads(text))] == []
    assert checker.is_valid({"providers": {"x": {"kind": "openai", "models": ["short", {"name": "long"}]}}})
    for wrong in (
        {"limits": {"active_run": 5}},
        {"limits": {"active_runs": 0}},
        {"limits": {"active_runs": "5"}},
        {"providers": {"x": {"kind": "openai", "api_key": "the-key-itself"}}},
        {"log": {"level": "loud"}},
    ):
        assert not checker.is_valid(wrong), wrong


def test_every_setting_is_explained() -> None:
    tables = list(document._tables())
    texts = document.read_texts()
    for table in tables:
        for name, _ in table.values():
            assert document.text_of(texts, table.model, name).endswith("."), f"{table.key}.{name}"
