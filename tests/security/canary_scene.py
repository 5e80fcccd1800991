"""A daemon of its own process whose every secret is a canary, with everything switched on that tells of what goes on.

Above: `test_canaries`. It has TLS and tokens, the most talkative log, metrics and traces, an audit, and vendors and
tool servers that tell everybody what they were sent.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from behest.client import Client
from behest.errors import BehestError
from behest.runs import RunHandle
from behest.security import Tls
from behestd.service.credentials import new_token
from tests import ports
from tests.auth.authority import Authority
from tests.daemon_process import DaemonProcess, running
from tests.security.leaks import MODES, Gossip, Vendor, canary, found_in, found_under, gossip, vendor
from tests.telemetry.collector import Collector, collecting

CONFIG = """
[log]
level = "debug"
format = "json"

[models.timeouts]
first_byte_seconds = 0.3
stall_seconds = 0.3

[models.retries]
attempts_per_endpoint = 2
base_seconds = 0.01

[limits]
drain_seconds = 1.0

[server.tls]
certificate = "file:{home}/secrets/server.pem"
key = "file:{home}/secrets/server.key"

[[auth.tokens]]
id = "{token_id}"
hash = "{token_hash}"
principal = "alice"
role = "admin"

[permissions]
default = "allow"

[telemetry]
prometheus = "{metrics}"
otlp = "{collector}"
otlp_headers = {{ x-key = "env:BEHEST_TEST_COLLECTOR" }}
metrics_seconds = 0.5

[providers.from_env]
kind = "openai"
base_url = "http://127.0.0.1:{vendor}/v1"
api_key = "env:BEHEST_TEST_KEY"
models = {models}

[providers.from_file]
kind = "openai"
base_url = "http://127.0.0.1:{vendor}/v1"
api_key = "file:{home}/secrets/key"
models = {models}
headers = {{ x-team = "{header_text}", x-key = "env:BEHEST_TEST_HEADER" }}

[providers.from_credential]
kind = "anthropic"
base_url = "http://127.0.0.1:{vendor}/v1"
api_key = "credential:key"
models = ["denied", "broken"]

[[tools.servers]]
name = "gossip"
address = "127.0.0.1:{tools}"
token = "file:{home}/secrets/token"
dedupe_retention_seconds = 604800.0

[tools.servers.policies.gossip]
side_effect = "idempotent"
max_attempts = 2
"""


OWN = {"key", "token", "server.key", "behestd.toml"}
"""Files of the operator, where secrets are."""


@dataclass
class Scene:
    """A daemon with canaries for secrets, and what it told anybody."""

    home: Path
    daemon: DaemonProcess
    secrets: dict[str, str]
    said: dict[str, str]
    vendor: Vendor
    gossip: Gossip
    collector: Collector
    metrics: str
    """Where metrics are read."""
    told: list[str] = field(default_factory=list)
    """What clients were shown: events, errors, answers."""
    shown: list[str] = field(default_factory=list)
    """What operators were shown: errors, settings, metrics, traces, the audit, command lines."""

    def client(self) -> Client:
        """A client who may do everything."""
        ca = self.home / "secrets/ca.pem"
        return Client(self.daemon.address, token=self.secrets["client"], tls=Tls(ca=ca, server_name="localhost"))

    async def live(self, client: Client) -> None:
        """Do everything in which a secret is used or something fails."""
        async with asyncio.TaskGroup() as tasks:
            for provider in ("from_env", "from_file", "from_credential"):
                for mode in MODES:
                    tasks.create_task(self._run(client, self.said["prompt"], model=f"{provider}/{mode}"))
        await self._run(client, f"/tool gossip {self.arguments} /next /say done", model="scripted/echo")
        await self._try(client.tools.call("gossip", self.arguments), self.told)
        await self._refusals(client)
        await self._strangers()
        self.told.append(str([server async for server in client.servers.list()]))
        self.told.append(str([tool async for tool in client.tools.list()]))
        self.shown.append(str(await client.daemon.status()))
        self.shown.append(str(await client.daemon.info()))
        await self._reload(client)
        await self._look()

    @property
    def arguments(self) -> str:
        """Arguments of a tool, which are for it and for the store."""
        return json.dumps({"x": self.said["argument"]})

    async def _run(self, client: Client, said: str, *, model: str) -> None:
        try:
            await self.watch(await client.run(said, model=model))
        except BehestError as error:
            self.told.append(f"{error!r} {error.metadata}")

    async def watch(self, run: RunHandle) -> None:
        """Follow a run to its end."""
        async with asyncio.timeout(30):
            self.told += [str(update) async for update in run.updates()]
        self.told.append(str(await run.get()))

    async def _try(self, call: Awaitable[Any], place: list[str]) -> None:
        try:
            place.append(str(await call))
        except BehestError as error:
            place.append(f"{error.message} {error.metadata} {error.violations}")

    async def _refusals(self, client: Client) -> None:
        """Say what people say in calls that are refused: the error names the field, never what stands in it."""
        prompt, argument = self.said["prompt"], self.said["argument"]
        for call in (
            client.run(prompt + "x" * 2_000_000),
            client.run(prompt, model="scripted/none"),
            client.run(prompt, tools=["nothing"]),
            client.run(prompt, output_schema_json='{"' + prompt),
            client.tools.call("gossip", argument),
            client.tools.call("gossip", f'{{"x": "{argument}", "x": "{argument}"}}'),
            client.tools.call("nothing", self.arguments),
            *(client.tools.call("strict", json.dumps({key: argument})) for key in ("x", "y", "z", "none")),
        ):
            await self._try(call, self.shown)

    async def _strangers(self) -> None:
        """Call with a token that is not quite one, with none, and in the clear."""
        tls = Tls(ca=self.home / "secrets/ca.pem", server_name="localhost")
        address, token = self.daemon.address, self.secrets["client"]
        for wrong in (token[:-1] + ("a" if token[-1] != "a" else "b"), token + "x", "Bearer " + token):
            async with Client(address, token=wrong, tls=tls) as client:
                await self._try(client.daemon.info(), self.shown)
        async with grpc.aio.insecure_channel(address) as channel:
            info = channel.unary_unary("/behest.v1.DaemonService/GetServerInfo")
            try:
                await info(b"", metadata=(("authorization", f"Bearer {token}"),), timeout=1)
            except grpc.aio.AioRpcError as error:
                self.shown.append(str(error.details()))

    async def _reload(self, client: Client) -> None:
        """Reload what is right and, twice, what is not, with a secret in a place where none belongs."""
        path = self.home / "daemon/behestd.toml"
        good = path.read_text()
        await self._try(client.daemon.reload(), self.shown)
        for wrong in (
            f'[providers.bad]\nkind = "openai"\napi_key = "{self.secrets["file"]}"\n',
            f"{self.secrets['env']}\n",
        ):
            path.write_text(good + wrong)
            await self._try(client.daemon.reload(), self.shown)
        self.daemon.send_signal(signal.SIGHUP)
        await self._try(client.daemon.config(), self.shown)
        path.write_text(good)
        await self._try(client.daemon.reload(), self.shown)

    async def _look(self) -> None:
        """Look at the daemon as an operator, and as a neighbour on the machine."""
        for command in ("cmdline", "environ"):
            for child in [*_children(self.daemon.pid), self.daemon.pid]:
                if command == "cmdline" or child != self.daemon.pid:
                    self.shown.append(Path(f"/proc/{child}/{command}").read_text(errors="replace"))
        self.shown.append(await asyncio.to_thread(_read, f"http://{self.metrics}/metrics"))

    async def tend(self, name: str) -> None:
        """Do what operators do with data: back it up, check it, export it, read the audit, look at the settings."""
        data = ["--data-dir", str(self.home / "daemon/data")]
        async with asyncio.TaskGroup() as tasks:
            for command in (
                ["check-config", "--config", str(self.home / "daemon/behestd.toml")],
                ["fsck", *data],
                ["backup", *data, str(self.home / name)],
                ["audit", *data, "--output", "json"],
            ):
                tasks.create_task(self._command(command))

    async def _command(self, command: list[str]) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "behestd", *command,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=self.daemon.env,
        )  # fmt: skip
        async with asyncio.timeout(60):
            output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        self.shown.append(output.decode())

    async def export(self, client: Client) -> None:
        """Export every session, as a client takes it away."""
        async for session in client.sessions.list():
            self.told.append(repr(b"".join([piece async for piece in client.sessions.export(session.id)])))

    def spilt(self) -> list[str]:
        """Where secrets stand, and where stands what people said that is for the store alone."""
        found = found_under(self.home, self.secrets, without=OWN)
        found += found_under(self.home, self.said, without=OWN | self._store())
        for place, texts in (("what clients were told", self.told), ("what operators were shown", self._shown())):
            found += found_in("\n".join(texts).encode(), self.secrets, place)
        return found + found_in("\n".join(self._shown()).encode(), self.said, "what operators were shown")

    def _shown(self) -> list[str]:
        exports = [raw.decode("latin-1") for raw in self.collector.raw]
        return [*self.shown, *exports, *map(str, self.collector.spans)]

    def _store(self) -> set[str]:
        """The files of the store and of its copies, whose place for prompts it is; that of the audit is none."""
        folders = [self.home / "daemon/data", *self.home.glob("backup*")]
        return {path.name for folder in folders for path in folder.rglob("*") if path.parent.name != "audit"}


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        text: str = answer.read().decode()
    return text


@asynccontextmanager
async def living(home: Path) -> AsyncIterator[Scene]:
    """A daemon whose every secret is a canary."""
    names = ("env", "header", "headertext", "file", "credential", "token", "collector")
    words = {name: canary(name) for name in names}
    said = {name: canary(name) for name in ("prompt", "argument")}
    for folder in ("secrets", "credentials"):
        (home / folder).mkdir(mode=0o700)
    authority, token = Authority(), new_token()
    pair = authority.server()
    contents = {
        "secrets/key": words["file"], "secrets/token": words["token"], "credentials/key": words["credential"],
        "secrets/server.pem": pair.certificate.decode(), "secrets/server.key": pair.key.decode(),
        "secrets/ca.pem": authority.certificate.decode(),
    }  # fmt: skip
    for path, text in contents.items():
        (home / path).touch(0o600)
        (home / path).write_text(text + "\n")
    # A line from the middle of the key is as good as the key.
    words |= {"client": token.text, "tls": pair.key.decode().splitlines()[1]}
    env = {
        "BEHEST_TEST_KEY": words["env"],
        "BEHEST_TEST_HEADER": words["header"],
        "BEHEST_TEST_COLLECTOR": words["collector"],
        "CREDENTIALS_DIRECTORY": str(home / "credentials"),
    }
    metrics = ports.address()
    async with vendor() as (seller, port), gossip() as (tools, tools_port), collecting() as collector:
        config = CONFIG.format(
            vendor=port, tools=tools_port, home=home, models=list(MODES), header_text=words["headertext"],
            collector=collector.address, metrics=metrics, token_id=token.token_id, token_hash=token.stored,
        )  # fmt: skip
        async with running(home / "daemon", config=config, env=env) as daemon:
            yield Scene(home, daemon, words, said, seller, tools, collector, metrics)
