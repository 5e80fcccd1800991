"""`behest conformance`: whether a server, in whatever language, keeps the contract."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import click

from behest.cli.command import Exit
from behest.cli.tls import Access
from behest.conformance import models as of_models
from behest.conformance.models_survey import Prompts
from behest.conformance.tools import Plan, examine, planned
from behest.conformance.verdict import Finding, Verdict, passes
from behest.security import Tls

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

PROMPTS = Prompts()
COLOURS = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.SKIP: "yellow"}


@click.group()
def conformance() -> None:
    """Examine a server through the contract."""


@conformance.command(epilog="Exit: 0 nothing failed, 1 something failed, 2 wrong usage.")
@click.argument("address", metavar="HOST:PORT")
@click.option("--call", "calls", multiple=True, metavar="NAME=JSON", help="Try a tool so; may be repeated.")
@click.option("--tool", "tools_tried", multiple=True, metavar="GLOB", help="Call these tools only. Default: all.")
@click.option("--only", multiple=True, metavar="GLOB", help="Make these checks only, as `key.*`.")
@click.option("--token-env", metavar="NAME", help="Variable that holds the bearer token to send.")
@click.option("--tls", is_flag=True, help="Connect with TLS, trusted as the system does.")
@click.option("--stateless", is_flag=True, help="The server promises no memory of keys.")
@click.option("--strict", is_flag=True, help="A check that could not be made is a failure too.")
@click.option("--patience", default=10.0, show_default=True, metavar="SECONDS", help="How long to wait for an answer.")
@click.option("--json", "is_json", is_flag=True, help="Print a JSON line for each check.")
def tools(
    address: str,
    calls: tuple[str, ...],
    tools_tried: tuple[str, ...],
    only: tuple[str, ...],
    token_env: str | None,
    is_json: bool,
    **settings: bool | float,
) -> None:
    """Check the ToolService at an address: it is called many times, with all the effects that its tools have.

    Arguments are made from the schemas; --call says better ones. A call that takes a second, one that goes on for a
    minute, one whose result differs each time, one that repeats its text, one that fails and one of more than 1 MiB let
    every check be made.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    access = _access(token_env, address, has_tls=bool(settings["tls"]))
    plan = Plan(
        address,
        calls=tuple(map(_call, calls)),
        only=only,
        tools=tools_tried,
        token=access.token,
        tls=bool(settings["tls"]),
        is_stateless=bool(settings["stateless"]),
        seconds=settings["patience"],
    )
    _report(address, lambda: planned(plan), lambda tell: examine(plan, tell), is_json=is_json, **settings)


@conformance.command(epilog="Exit: 0 nothing failed, 1 something failed, 2 wrong usage.")
@click.argument("address", metavar="HOST:PORT")
@click.option("--model", default="", metavar="NAME", help="Chat model to ask. Default: the first that is listed.")
@click.option("--embedding-model", default="", metavar="NAME", help="Model to make vectors with. Default: the first.")
@click.option(
    "--text", default=PROMPTS.text, metavar="PROMPT", help="Gets a short answer; {mark} is a word of its own."
)
@click.option("--calls", default=PROMPTS.calls, metavar="PROMPT", help="Gets calls of the tools now and look_up.")
@click.option("--long", default=PROMPTS.long, metavar="PROMPT", help="Gets an answer that takes long.")
@click.option("--only", multiple=True, metavar="GLOB", help="Make these checks only, as `chat.*`.")
@click.option("--token-env", metavar="NAME", help="Variable that holds the bearer token to send.")
@click.option("--tls", is_flag=True, help="Connect with TLS, trusted as the system does.")
@click.option("--strict", is_flag=True, help="A check that could not be made is a failure too.")
@click.option("--patience", default=60.0, show_default=True, metavar="SECONDS", help="How long to wait for an answer.")
@click.option("--json", "is_json", is_flag=True, help="Print a JSON line for each check.")
def models(address: str, only: tuple[str, ...], token_env: str | None, is_json: bool, **settings: Any) -> None:
    """Check the ChatService and the EmbeddingService at an address, by the models that its ModelService lists.

    Some dozens of calls are made, at whatever they cost. No model can be made to say something: what the prompts do not
    bring about is skipped.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    access = _access(token_env, address, has_tls=settings["tls"])
    plan = of_models.Plan(
        address,
        model=settings["model"],
        embedding_model=settings["embedding_model"],
        prompts=Prompts(settings["text"], settings["calls"], settings["long"]),
        only=only,
        token=access.token,
        tls=settings["tls"],
        seconds=settings["patience"],
    )
    checks, examined = (lambda: of_models.planned(plan)), (lambda tell: of_models.examine(plan, tell))
    _report(address, checks, examined, is_json=is_json, **settings)


def _report(
    address: str,
    checks: Callable[[], list[str]],
    examined: Callable[[Callable[[Finding], None]], Coroutine[Any, Any, list[Finding]]],
    *,
    is_json: bool,
    **settings: Any,
) -> None:
    """Make the checks, print what was found, and exit by it."""
    try:
        width = max(map(len, checks()))
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="--only") from exc
    try:
        found = asyncio.run(examined(_printer(width, is_json=is_json)))
    except RuntimeError as exc:
        raise click.ClickException(str(exc)) from exc
    if not is_json:
        counts = [f"{sum(each.verdict is verdict for each in found)} {verdict}" for verdict in Verdict]
        click.echo(f"{address}: {', '.join(counts)}")
    is_good = passes(found, is_strict=bool(settings["strict"]))
    click.get_current_context().exit(Exit.DONE if is_good else Exit.FAILED)


def _printer(width: int, *, is_json: bool) -> Callable[[Finding], None]:
    def document(finding: Finding) -> None:
        click.echo(json.dumps({"check": finding.check, "verdict": finding.verdict.value, "seen": finding.seen}))

    def row(finding: Finding) -> None:
        verdict = click.style(finding.verdict.value, fg=COLOURS[finding.verdict])
        click.echo(f"{finding.check.ljust(width)}  {verdict}  {finding.seen}")

    return document if is_json else row


def _call(text: str) -> tuple[str, str]:
    name, equals, arguments = text.partition("=")
    if not (name and equals):
        raise click.BadParameter(f"{text} is not NAME=JSON", param_hint="--call")
    return name, arguments


def _access(token_env: str | None, address: str, *, has_tls: bool) -> Access:
    access = Access(_secret(token_env) if token_env else "", Tls() if has_tls else None)
    access.check(address)
    return access


def _secret(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise click.BadParameter(f"{name} is not set", param_hint="--token-env")
    return value
