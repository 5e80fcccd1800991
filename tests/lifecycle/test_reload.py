"""Reload: what changes at once, what waits for the next start, and that nothing does while something is invalid."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from behest.v1.daemon_service_pb2 import GetStatusResponse
from behest.v1.run_state_pb2 import RunState
from behestd.changing import Changes
from behestd.config.source import Entry
from behestd.plan import Plan
from behestd.reload import Outcome
from tests import daemons
from tests.daemons import refused
from tests.lifecycle.stage import Configured, configured
from tests.routing.vendor import FINE, Answer, Vendor, vendor
from tests.runs.scenes import events_of, finished, kinds, until_kind
from tests.tool_process import tool_server

SECONDS = 20
CANARY = "canary-71d0ce"


def provider(made: Vendor, **more: str) -> str:
    """A file whose default model is that of a vendor."""
    lines = "".join(f'{name} = "{value}"\n' for name, value in more.items())
    return (
        '[models]\ndefault = "v/m"\n'
        f'[providers.v]\nkind = "openai"\nbase_url = "{made.url}"\n{lines}'
        '[[providers.v.models]]\nname = "m"\n'
    )


async def said(place: Configured, text: str = "hi") -> str:
    """What a run answers."""
    output = await (await place.client.run(text)).result()
    return output.text


async def arrived(made: Vendor) -> None:
    """Wait until a vendor was asked."""
    async with asyncio.timeout(SECONDS):
        await made.arrived.wait()


# --- providers (C135) ---


async def test_a_call_in_flight_ends_on_the_old_provider_and_new_ones_go_to_the_new(tmp_path: Path) -> None:  # C135
    async with vendor() as old, vendor() as new:
        hold = asyncio.Event()
        old.act = lambda number: Answer(words=("from the old",), hold=hold)
        new.act = lambda number: Answer(words=("from the new",))
        async with configured(tmp_path, provider(old)) as place:
            run = await place.client.run("hi")
            await arrived(old)
            before = place.daemon.plan.models.providers["v"]
            assert await place.reload(provider(new)) == (["providers.v.base_url"], [])
            assert await said(place) == "from the new"
            leases = place.daemon.house.leases
            assert leases.parted == 1
            hold.set()
            assert (await run.result()).text == "from the old"
            async with asyncio.timeout(SECONDS):
                while leases.parted:
                    await asyncio.sleep(0.01)
            assert place.daemon.plan.models.providers["v"] is not before
        assert (old.requests, new.requests) == (1, 1)


async def test_a_run_that_goes_on_stays_with_its_provider_to_its_end_and_takes_a_rotated_key(
    tmp_path: Path,
) -> None:  # C135
    key = tmp_path / "key"
    key.write_text("one")
    key.chmod(0o600)
    async with vendor() as old, vendor() as new:
        hold = asyncio.Event()
        old.says(Answer(503, hold=hold), Answer(words=("from the old",)))
        async with configured(tmp_path, provider(old, api_key=f"file:{key}")) as place:
            run = await place.client.run("hi")
            await arrived(old)
            key.write_text("two")
            assert await place.reload() == (["providers.v.api_key"], [])
            hold.set()
            assert (await run.result()).text == "from the old"
            assert old.keys == ["one", "two"]

            again = asyncio.Event()
            old.says(Answer(503, hold=again), Answer(words=("still from the old",)))
            old.arrived.clear()
            run = await place.client.run("hi")
            await arrived(old)
            await place.reload(provider(new, api_key=f"file:{key}"))
            await place.reload("")
            assert (await refused(place.client.run("hi", model="v/m"))).reason == "PROVIDER_NOT_FOUND"
            again.set()
            assert (await run.result()).text == "still from the old"
            assert (old.requests, new.requests) == (4, 0)
            async with asyncio.timeout(SECONDS):
                while place.daemon.house.leases.parted:
                    await asyncio.sleep(0.01)


async def test_a_provider_that_nothing_changed_of_stays_with_its_connections(tmp_path: Path) -> None:  # C135
    async with vendor() as made, configured(tmp_path, provider(made)) as place:
        before = place.daemon.house.models.current.providers["v"]
        changed, _ = await place.reload(provider(made) + "[limits]\nsession_queue = 3\n")
        assert changed == ["limits.session_queue"]
        assert place.daemon.house.models.current.providers["v"] is before
        assert place.daemon.house.leases.parted == 0


async def test_a_secret_that_was_rotated_applies_to_the_next_request(tmp_path: Path) -> None:  # C135, C138
    key = tmp_path / "key"
    key.write_text(f"{CANARY}-one\n")
    key.chmod(0o600)
    async with vendor() as made, configured(tmp_path, provider(made, api_key=f"file:{key}")) as place:
        assert await said(place) == "fine"
        key.write_text(f"{CANARY}-two\n")
        assert await place.reload() == (["providers.v.api_key"], [])
        assert await said(place) == "fine"
        assert await place.reload() == ([], [])
        assert made.keys == [f"{CANARY}-one", f"{CANARY}-two"]

        key.unlink()
        error = await refused(place.client.daemon.reload())
        assert (error.reason, CANARY in str(error)) == ("RUNTIME_CONFIG_INVALID", False)
        assert await said(place) == "fine"
        settings = {each.key: each.value_json for each in (await place.client.daemon.config()).settings}
        assert settings["providers.v.api_key"] == f'"file:{key}"'
        assert CANARY not in str(settings)


async def test_aliases_fallbacks_and_a_model_that_is_gone(tmp_path: Path) -> None:  # C135
    async with vendor() as made, configured(tmp_path, provider(made)) as place:
        text = provider(made) + '[models.aliases]\nquick = "scripted/echo"\n'
        await place.reload(text)
        run = await place.client.run("/say quick", model="quick")
        assert (await run.result()).text == "quick"
        await place.reload("")
        assert (await refused(place.client.run("hi", model="quick"))).reason == "PROVIDER_MODEL_NOT_FOUND"
        assert (await refused(place.client.run("hi", model="v/m"))).reason == "PROVIDER_NOT_FOUND"
        assert await said(place, "/say still here") == "still here"


# --- tool servers and policies ---


def server(address: str, policy: str = "pure") -> str:
    """A file with a tool server."""
    return (
        f'[[tools.servers]]\nname = "files"\naddress = "{address}"\n'
        f'[tools.policies."*"]\nside_effect = "{policy}"\n[permissions]\ndefault = "allow"\n'
    )


async def tools(place: Configured) -> dict[str, int]:
    """The tools that are there, with their classes."""
    return {tool.name: tool.policy.side_effect async for tool in place.client.tools.list()}


async def test_tool_servers_come_change_and_go_and_policies_with_them(tmp_path: Path) -> None:  # C135
    async with tool_server(tmp_path) as process, configured(tmp_path) as place:
        built_in = await tools(place)
        changed, restart = await place.reload(server(process.address))
        assert restart == []
        assert {"tools.servers", "permissions.default"} <= set(changed)
        first = await tools(place)
        added = first.keys() - built_in.keys()
        assert added
        remote = place.daemon.rooms.registry.named("default", "files")
        await place.reload(server(process.address, "non_idempotent"))
        second = await tools(place)
        assert {second[name] for name in added} != {first[name] for name in added}
        assert place.daemon.rooms.registry.named("default", "files") is remote
        await place.reload("")
        assert await tools(place) == built_in
        assert place.daemon.rooms.registry.named("default", "files") is None


async def test_a_run_keeps_the_policy_and_the_limits_it_was_made_with(tmp_path: Path) -> None:  # C135, matrix row 71
    text = "[limits.run]\nmax_steps = 7\n"
    async with configured(tmp_path, text) as place:
        run = await place.client.run("/stall", run_id="pinned")
        await until_kind(place.client.watch("pinned"), "model_requested")
        await place.reload("[limits.run]\nmax_steps = 3\n")
        await place.client.run("/stall", run_id="later")
        steps = {each.id: each.definition.limits.max_steps for each in place.daemon.rooms.supervisor.runs()}
        assert steps == {"pinned": 7, "later": 3}
        assert (await place.client.runs.get("pinned")).state == RunState.RUN_STATE_RUNNING
        await run.cancel()
        assert kinds(await events_of(place.client.watch("pinned")))[-1] == "run_cancelled"


# --- limits, rules, prices ---


async def test_limits_and_rules_count_from_the_next_thing_on(tmp_path: Path) -> None:  # C135
    async with configured(tmp_path, "[limits]\nsweep_seconds = 0.05\n") as place:
        session = (await place.client.sessions.create()).id
        await place.client.run("/stall", run_id="first", session_id=session)
        assert (await place.client.daemon.status()).max_active_runs == 512
        await place.reload(
            "[limits]\nactive_runs = 1\ninput_bytes = 100\nsession_queue = 0\nsweep_seconds = 0.05\n"
            '[[admission.reject]]\nname = "cards"\npattern = "[0-9]{16}"\n'
        )
        assert (await place.client.daemon.status()).max_active_runs == 1
        assert (await refused(place.client.run("x" * 200))).reason == "RUN_INPUT_REJECTED"
        assert (await refused(place.client.run("1234123412341234"))).metadata["rule"] == "cards"
        assert (await refused(place.client.run("hi", session_id=session))).reason == "RUN_SESSION_QUEUE_FULL"
        second = await place.client.run("/say second")
        assert (await place.client.runs.get(second.run_id)).state == RunState.RUN_STATE_QUEUED
        await place.reload("[limits]\nactive_runs = 2\nsweep_seconds = 0.05\n")
        assert (await finished(place.client, second.run_id)).output.text == "second"


async def test_budgets_that_are_new_count_what_was_used_before(tmp_path: Path) -> None:  # C135
    async with configured(tmp_path) as place:
        await (await place.client.run("/say so many words as these are")).result()
        await place.reload("[budgets.namespaces.default]\nmax_calls = 2\n")
        await (await place.client.run("/say the second")).result()
        third = await place.client.run("/say the third")
        assert (await finished(place.client, third.run_id)).state == RunState.RUN_STATE_FAILED
        await place.reload("[budgets.namespaces.default]\nmax_calls = 5\n")
        assert (await (await place.client.run("/say the fourth")).result()).text == "the fourth"
        await place.reload("")
        assert (await (await place.client.run("/say the last")).result()).text == "the last"


# --- what is invalid, and what waits ---


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[limits]\nactive_runs = 0\n", "limits.active_runs"),
        ("[limits]\nactive_run = 5\n", "limits.active_run"),
        ('[models]\ndefault = "nobody/nothing"\n', "models.default"),
        ('[providers.x]\nkind = "openai"\napi_key = "env:NOT_THERE"\n', "providers.x.api_key"),
        ('[[tools.servers]]\nname = "x"\naddress = "169.254.169.254:80"\n', "tools.servers[0].address"),
        ("not toml at all", ""),
    ],
)
async def test_what_is_invalid_changes_nothing_and_says_why(tmp_path: Path, text: str, key: str) -> None:  # C135
    async with configured(tmp_path, "[limits]\nsession_queue = 5\n") as place:
        before = place.daemon.plan
        place.write("[limits]\nsession_queue = 9\n" if "limits" not in text else "")
        place.file.write_text(place.file.read_text() + text)
        error = await refused(place.client.daemon.reload())
        assert error.reason == "RUNTIME_CONFIG_INVALID"
        assert [field for field, _ in error.violations][:1] == [key] or key == ""
        assert place.daemon.plan is before
        assert place.daemon.house.limits.session_queue == 5
        assert await said(place, "/say all as before") == "all as before"


async def test_what_a_part_cannot_take_changes_nothing_in_any_other(tmp_path: Path) -> None:  # C135
    token = f'[[auth.tokens]]\nid = "abcdefgh"\nhash = "sha256:{"0" * 64}"\nprincipal = "ci"\nrole = "user"\n'
    async with configured(tmp_path, "[limits]\nsession_queue = 5\n") as place:
        place.write(f"[limits]\nsession_queue = 9\n{token}")
        error = await refused(place.client.daemon.reload())
        assert (error.reason, error.metadata["key"]) == ("RUNTIME_CONFIG_INVALID", "auth")
        assert place.daemon.house.limits.session_queue == 5
        assert await said(place, "/say nobody needs a token") == "nobody needs a token"


async def test_a_fault_in_a_reload_costs_that_reload_alone(tmp_path: Path) -> None:  # C135
    async with configured(tmp_path) as place:
        changing = place.daemon.reloading._changing
        assert isinstance(changing, Changes)
        parts = changing.parts

        def broken(plan: Plan) -> Callable[[], None]:
            raise ZeroDivisionError

        changing.parts = (*parts, broken)
        assert (await refused(place.client.daemon.reload())).reason == "RUNTIME_INTERNAL"
        changing.parts = parts
        assert await place.reload("[limits]\nsession_queue = 3\n") == (["limits.session_queue"], [])


async def test_permissions_and_sources_of_context_change_for_runs_that_come(tmp_path: Path) -> None:  # C135
    async with tool_server(tmp_path) as process, configured(tmp_path, server(process.address)) as place:
        names = set(await tools(place))
        await place.reload(
            server(process.address)
            + '[[permissions.rules]]\ntool = "*"\naction = "deny"\nreason = "not today"\n'
            + '[context.sources.house]\nkind = "static"\ntext = "be kind"\n'
        )
        assert set(await tools(place)) == names
        assert "house" in place.daemon.house.sources.names()
        (rule,) = place.daemon.house.operator.permissions
        assert rule.reason == "not today"
        await place.reload("")
        assert "house" not in place.daemon.house.sources.names()
        assert list(place.daemon.house.operator.permissions) == []


async def test_what_needs_a_restart_is_named_and_shown_as_it_was(tmp_path: Path) -> None:  # C135
    async with configured(tmp_path) as place:
        text = "[limits]\nsession_queue = 3\n"
        place.file.write_text(
            '[server]\nlisten = ["127.0.0.1:1"]\nheartbeat_seconds = 3.0\n[storage]\nkind = "memory"\n' + text
        )
        changed, restart = await place.reload()
        assert restart == ["server.listen"]
        assert set(changed) == {"server.listen", "server.heartbeat_seconds", "limits.session_queue"}
        settings = {each.key: each.value_json for each in (await place.client.daemon.config()).settings}
        assert settings["server.listen"] == '["127.0.0.1:0"]'
        assert settings["limits.session_queue"] == "3"
        assert list((await place.client.daemon.status()).restart_keys) == ["server.listen"]
        await place.reload("")
        assert list((await place.client.daemon.status()).restart_keys) == []


async def test_the_configuration_in_force_is_shown_with_its_sources(tmp_path: Path) -> None:  # C137
    environ = {"BEHEST__LIMITS__SESSION_QUEUE": "4"}
    async with configured(tmp_path, "[limits]\nactive_runs = 9\nsession_queue = 3\n", environ) as place:
        told = (await place.client.daemon.config()).settings
        found = {each.key: (each.value_json, each.source) for each in told}
        effective: tuple[Entry, ...] = place.daemon.reloading.effective()
    assert found["limits.active_runs"] == ("9", str(place.file))
    assert found["limits.session_queue"] == ("4", "BEHEST__LIMITS__SESSION_QUEUE")
    assert found["limits.tool_calls"] == ("256", "default")
    assert [each.key for each in told] == sorted(entry.key for entry in effective)


async def test_a_daemon_that_was_not_configured_has_nothing_to_read_again() -> None:
    async with daemons.serve() as served:
        for call in (served.client.daemon.reload(), served.client.daemon.config()):
            assert (await refused(call)).reason == "REQUEST_UNSUPPORTED"


class Witness:
    """Notes what reloads come to."""

    def __init__(self) -> None:
        self.noted: list[str] = []

    def begins(self, by: str) -> None:
        """Note a beginning."""
        self.noted.append(f"begins {by}")

    def ended(self, by: str, outcome: Outcome | None, error: BaseException | None) -> None:
        """Note an end."""
        self.noted.append("done" if outcome is not None else "refused")


async def test_reloads_come_one_after_the_other_and_witnesses_hear_of_each(tmp_path: Path) -> None:  # C135
    async with configured(tmp_path) as place:
        witness = Witness()
        place.daemon.reloading.witnesses.append(witness)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(place.client.daemon.reload())
        place.write("[limits]\nactive_runs = 0\n")
        assert (await refused(place.client.daemon.reload())).reason == "RUNTIME_CONFIG_INVALID"
    assert witness.noted == ["begins local", "done"] * 3 + ["begins local", "refused"]


# --- under load ---


async def stream(place: Configured, until: asyncio.Event, done: list[str]) -> None:
    """Do one run after the other."""
    while not until.is_set():
        run = await place.client.run("/say one two three four five")
        async with asyncio.timeout(3 * SECONDS):
            done.append((await run.result()).text)


async def reload_under_load(tmp_path: Path, reloads: int, streams: int) -> None:
    async with vendor() as one, vendor() as two, configured(tmp_path, provider(one)) as place:
        for each in (one, two):
            each.act = lambda number: FINE
        until, done = asyncio.Event(), list[str]()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(streams):
                tasks.create_task(stream(place, until, done))
            for number in range(reloads):
                text = provider((one, two)[number % 2]) + f"[limits]\nsession_queue = {number + 1}\n"
                if number % 5 == 4:
                    place.write(text + "[nonsense]\n")
                    assert (await refused(place.client.daemon.reload())).reason == "RUNTIME_CONFIG_INVALID"
                else:
                    changed, _ = await place.reload(text)
                    assert "limits.session_queue" in changed
            until.set()
        assert set(done) == {"fine"}
        assert len(done) >= streams
        assert min(one.requests, two.requests) > 0
        status: GetStatusResponse = await place.client.daemon.status()
        assert status.accepting
        async with asyncio.timeout(SECONDS):
            while place.daemon.house.leases.parted:
                await asyncio.sleep(0.01)


async def test_reloads_under_load_fail_no_run(tmp_path: Path) -> None:  # C135, matrix row 71
    await reload_under_load(tmp_path, 20, 8)


@pytest.mark.proof
async def test_a_hundred_reloads_under_load_fail_no_run(tmp_path: Path) -> None:  # C135, matrix row 71
    await reload_under_load(tmp_path, 100, 32)
