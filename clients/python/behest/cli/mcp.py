"""`behest mcp-bridge` and `mcp-serve`: the Model Context Protocol both ways."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from behest.channel import default_address
from behest.cli.command import Exit, exit_code, pairs
from behest.cli.show import Output
from behest.cli.tls import of_daemon, of_listener, to_daemon, to_listen
from behest.client import Client
from behest.errors import BehestError
from behest.tools import ToolServer

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from behest.cli.tls import Access
    from behest.mcp.bridge import Bridge


_PEM = click.Path(exists=True, dir_okay=False)
ALONE_SECONDS = 5.0
"""How long a bridge that stops waits for a daemon that does not answer."""
LAST_SECONDS = 15.0
"""How long it may take to let go of the MCP server after that."""
_ENDING = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class Ends:
    """Where a bridge is served: attached to a daemon under a name, at an address for daemons that dial, or both."""

    name: str
    target: str
    access: Access
    listen: str
    listen_token: str = field(repr=False)
    max_calls: int
    grace_seconds: float


@click.command(
    name="mcp-bridge",
    epilog="Exit: 0 stopped, 1 failed, 2 wrong usage, 4 daemon unreachable. A second signal ends it as signals do.",
)
@click.argument("command", nargs=-1, metavar="[-- COMMAND [ARGS]...]")
@click.option("--url", default="", help="Where an MCP server is, by streamable HTTP, in place of a COMMAND.")
@click.option("--name", default="", help="Attach to the daemon under this name.")
@click.option("--target", "--address", default=None, metavar="ADDRESS", help="The daemon. Default: BEHEST_ADDRESS.")
@click.option("--listen", default="", metavar="ADDRESS", help="Listen for daemons that dial; port 0 is a free one.")
@click.option("--tools", "only", multiple=True, metavar="GLOB", help="Offer these MCP tools. Default: all.")
@click.option("--without", multiple=True, metavar="GLOB", help="Leave these MCP tools out.")
@click.option("--prefix", default="", help="What is put before the names of the tools.")
@click.option("--env", multiple=True, metavar="NAME", help="Variable that COMMAND gets from our environment.")
@click.option("--header", multiple=True, metavar="NAME=VARIABLE", help="HTTP header, and the variable that holds it.")
@click.option("--dedupe", default="", metavar="FILE", help="Remember calls over restarts here.")
@click.option("--max-calls", default=0, type=click.IntRange(min=0), help="Most calls at once. Default: the daemon's.")
@click.option("--token-env", metavar="NAME", help="Variable with the daemon's token. Default: BEHEST_TOKEN.")
@click.option("--listen-token-env", metavar="NAME", help="Variable that holds the token that daemons must bring.")
@click.option("--patience", default=30.0, show_default=True, help="Seconds until the MCP server must be there.")
@click.option(
    "--grace",
    default=25.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds that calls have to end after SIGTERM.",
)
@to_daemon
@to_listen
def mcp_bridge(command: tuple[str, ...], url: str, name: str, target: str | None, **options: Any) -> None:
    """Serve the tools of an MCP server to a daemon.

    The MCP server is a COMMAND, spoken to over its stdin and stdout, or at a --url. What its tools may do is the
    operator's to say: until then each call counts as one that must not be repeated.
    """
    if bool(command) == bool(url):
        raise click.UsageError("give either a COMMAND behind --, or a --url")
    if not (name or options["listen"]):
        raise click.UsageError("give a --name to attach under, or --listen")
    access = of_daemon(options)
    if options["token_env"]:
        access = replace(access, token=_secret(options["token_env"], "--token-env"))
    ends = Ends(
        name,
        target or default_address(),
        access,
        options["listen"],
        _secret(options["listen_token_env"], "--listen-token-env"),
        options["max_calls"],
        options["grace"],
    )
    if name:
        access.check(ends.target)
    transports, offer = _loaded("transports"), _loaded("offer")
    if url:
        is_safe = url.startswith("https://") or (urlsplit(url).hostname or "") in transports.LOOPBACK
        if options["header"] and not is_safe:
            raise click.UsageError("headers are secrets: beyond loopback they are sent to an https:// URL only")
        headers = {key: _secret(variable, "--header") for key, variable in pairs(options["header"]).items()}
        dial = transports.Http(url, headers)
    else:
        if shutil.which(command[0]) is None:
            raise click.BadParameter(f"there is no command {command[0]}", param_hint="COMMAND")
        env = {variable: _secret(variable, "--env") for variable in options["env"]}
        dial = transports.Process(command[0], command[1:], env)
    server = ToolServer(dedupe=options["dedupe"], token=ends.listen_token, credentials=of_listener(options))
    choice = offer.Choice(options["only"], options["without"], options["prefix"])
    bridge = _loaded("bridge").Bridge(server, dial, choice, patience_seconds=options["patience"])
    _run(_bridge(bridge, server, ends))


@click.command(name="mcp-serve", epilog="Exit: 0 stopped, 1 failed, 2 wrong usage.")
@click.option("--target", "--address", default=None, metavar="ADDRESS", help="The daemon. Default: BEHEST_ADDRESS.")
@click.option("--tools", "globs", multiple=True, metavar="GLOB", help="Offer these tools. Default: all.")
@click.option("--no-tools", is_flag=True, help="Offer no tools but that which gives orders.")
@click.option(
    "--run-tool", default="run", show_default=True, metavar="NAME", help="The tool that gives orders; '' = none."
)
@click.option("--agent", default="", help="Agent that orders go to. Default: the caller names it.")
@click.option("--http", default="", metavar="HOST:PORT", help="Serve streamable HTTP here. Default: stdin and stdout.")
@click.option("--token-env", metavar="NAME", help="Variable that holds the token that HTTP clients must bring.")
@click.option("--http-cert", type=_PEM, help="Certificate to serve HTTPS with.")
@click.option("--http-key", type=_PEM, help="The key of that certificate.")
@to_daemon
def mcp_serve(target: str | None, globs: tuple[str, ...], http: str, token_env: str | None, **options: Any) -> None:
    """Offer tools and runs of a daemon as an MCP server."""
    place, colon, port = http.rpartition(":")
    host = place.strip("[]")
    if http and not (colon and port.isdigit()):
        raise click.BadParameter(f"{http} is not HOST:PORT", param_hint="--http")
    pem = (options["http_cert"] or "", options["http_key"] or "")
    if any(pem) != (all(pem) and bool(http)):
        raise click.UsageError("--http-cert, --http-key and --http come together")
    address, access = target or default_address(), of_daemon(options)
    access.check(address)
    serving, orders = _loaded("serving"), _loaded("orders")
    token = _secret(token_env, "--token-env")
    if http and host not in _loaded("transports").LOOPBACK and not token:
        raise click.UsageError(f"{host} is beyond loopback: give a --token-env")

    async def served() -> Exit:
        async with Client(address, token=access.token, tls=access.tls) as client:
            given = orders.Orders(client, options["run_tool"], options["agent"]) if options["run_tool"] else None
            face = serving.Face(client, globs, given, has_tools=not options["no_tools"])
            if not http:
                await serving.serve_stdio(face)
            else:
                stopping = asyncio.Event()
                for number in (signal.SIGTERM, signal.SIGINT):
                    asyncio.get_running_loop().add_signal_handler(number, stopping.set)
                door = serving.Door(host, int(port), token, *pem)
                await serving.serve_http(face, door, stopping=stopping, on_ready=_echo_url)
        return Exit.DONE

    _run(served())


async def _bridge(bridge: Bridge, server: ToolServer, ends: Ends) -> Exit:
    """Serve until a signal: the first drains, a second one ends the process. Raises what bridge and daemon refuse."""
    error: BehestError | RuntimeError | None = None
    loop = asyncio.get_running_loop()
    async with bridge, server, asyncio.TaskGroup() as group:

        def end() -> None:
            for number in _ENDING:
                # Whatever the drain and the transports wait for, the next one is not theirs to hold up.
                signal.signal(number, signal.SIG_DFL)
            group.create_task(server.drain(ends.grace_seconds, alone_seconds=ALONE_SECONDS))
            loop.call_later(ends.grace_seconds + LAST_SECONDS, signal.raise_signal, signal.SIGTERM)

        for number in _ENDING:
            loop.add_signal_handler(number, end)
        try:
            if ends.listen:
                port = await server.serve(ends.listen)
                click.echo(f"ready address={_with_port(ends.listen, port)} tools={len(server.tools)}")
            if ends.name:
                attachment = await server.attach(
                    ends.target,
                    name=ends.name,
                    token=ends.access.token,
                    tls=ends.access.tls,
                    max_concurrent_calls=ends.max_calls,
                )
                if attachment.is_attached:
                    click.echo(f"ready name={ends.name} target={ends.target} tools={len(server.tools)}")
            await server.wait()
        except (BehestError, RuntimeError) as exc:
            # Raised behind the group, which would wrap it.
            error = exc
    if error is not None:
        raise error
    return Exit.DONE


def _run(work: Coroutine[Any, Any, Exit]) -> None:
    """Run a command to its end, say what went wrong, and exit."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    refusal = _loaded("offer").OfferRefused
    try:
        code = asyncio.run(work)
    except BehestError as exc:
        Output(is_json=False).error(exc)
        code = exit_code(exc)
    except (refusal, TimeoutError, RuntimeError, OSError) as exc:
        click.secho(f"error: {exc}", fg="red", err=True)
        code = Exit.FAILED
    click.get_current_context().exit(code)


def _echo_url(url: str) -> None:
    click.echo(f"ready url={url}")


def _loaded(module: str) -> Any:
    """Load a part that needs the extra."""
    try:
        return import_module(f"behest.mcp.{module}")
    except ModuleNotFoundError as exc:
        if exc.name and exc.name.startswith("behest"):
            raise
        raise click.ClickException("MCP needs the extra: pip install 'behest[mcp]'") from exc


def _secret(name: str | None, option: str) -> str:
    if not name:
        return ""
    value = os.environ.get(name, "")
    if not value:
        raise click.BadParameter(f"{name} is not set", param_hint=option)
    return value


def _with_port(address: str, port: int) -> str:
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
