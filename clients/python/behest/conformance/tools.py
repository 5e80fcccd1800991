"""Examines a tool server: the table of checks, and how they are made one after the other.

Above: `behest conformance tools` and tests. Below: the checks. It calls the server's tools, many times, with their
effects: examine a server whose tools may be called.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from behest.conformance import checks_call, checks_error, checks_key, checks_list, checks_status
from behest.conformance.examination import make, picked
from behest.conformance.probe import Probe
from behest.conformance.schemas import require
from behest.conformance.survey import Orders, survey

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from behest.conformance.survey import Subject
    from behest.conformance.verdict import Finding

# In this order: what is cheap first, what might hurt a server last.
CHECKS: dict[str, Callable[[Subject], Awaitable[str]]] = {
    "list.answers": checks_list.answers,
    "list.names": checks_list.names,
    "list.order": checks_list.order,
    "list.pages": checks_list.pages,
    "list.glob": checks_list.glob,
    "list.get": checks_list.get,
    "list.texts": checks_list.texts,
    "schema.valid": checks_list.valid,
    "schema.hash": checks_list.hashes,
    "schema.honest": checks_list.honest,
    "call.results": checks_call.results,
    "call.identity": checks_call.identity,
    "call.parts": checks_call.parts,
    "call.output_schema": checks_call.output_schema,
    "call.failures": checks_call.failures,
    "call.empty_arguments": checks_call.empty_arguments,
    "call.unicode": checks_call.unicode,
    "call.progress": checks_call.progress,
    "call.chunks": checks_call.chunks,
    "call.at_once": checks_call.at_once,
    "call.beside": checks_call.beside,
    "call.keyless": checks_call.keyless,
    "error.unknown_tool": checks_error.unknown_tool,
    "error.arguments": checks_error.arguments,
    "error.no_json": checks_error.no_json,
    "error.changed": checks_error.changed,
    "error.expired": checks_error.expired,
    "error.proof": checks_error.proof,
    "error.token": checks_error.token,
    "key.repeat": checks_key.repeat,
    "key.attempt": checks_key.attempt,
    "key.at_once": checks_key.at_once,
    "key.arguments": checks_key.other_arguments,
    "key.epoch": checks_key.epoch,
    "key.disconnect": checks_key.disconnect,
    "key.deadline": checks_key.deadline,
    "status.done": checks_status.done,
    "status.large": checks_status.large,
    "status.running": checks_status.running,
    "status.wait": checks_status.waited,
    "status.tombstone": checks_status.tombstone,
    "status.tombstone_later": checks_status.tombstone_later,
    "cancel.stops": checks_status.cancel_stops,
    "cancel.repeats": checks_status.cancel_repeats,
    "cancel.epoch": checks_status.cancel_epoch,
    "cancel.one": checks_status.cancel_one,
    "cancel.again": checks_status.cancel_again,
    "error.nesting": checks_error.nesting,
    "error.oversize": checks_error.oversize,
    "list.stable": checks_list.stable,
    "alive": checks_call.alive,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to examine, and how. `only` picks checks and `tools` the tools that may be called, both by globs."""

    address: str
    calls: tuple[tuple[str, str], ...] = ()
    only: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    token: str = ""
    tls: bool = False
    # Whether the server promises no memory of keys, so that what rests on it is skipped.
    is_stateless: bool = False
    # How long each answer is waited for.
    seconds: float = 10.0


def planned(plan: Plan) -> list[str]:
    """Return the names of the checks that a plan picks. Raises ValueError for a glob that picks none."""
    return picked(CHECKS, plan.only)


async def examine(plan: Plan, tell: Callable[[Finding], None] = lambda finding: None) -> list[Finding]:
    """Make the checks, in the order of the table, tell of each finding, and return them all.

    Without a list of tools, what needs one is skipped. Raises ValueError for a glob that picks no check, RuntimeError
    without the extra.
    """
    names = planned(plan)
    require()
    orders = Orders(plan.calls, lambda name: not plan.tools or any(fnmatchcase(name, glob) for glob in plan.tools))
    async with Probe(plan.address, token=plan.token, seconds=plan.seconds, tls=plan.tls) as probe:
        subject = await survey(probe, orders, is_stateless=plan.is_stateless)
        return await make(CHECKS, names, subject, "" if subject.tools else "no tools are listed", tell)
