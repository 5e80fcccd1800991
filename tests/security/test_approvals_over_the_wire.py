"""Who may approve what, by tokens over the wire: never who ordered it, never twice, never for another call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import grpc
import pytest

from behest.channel import stubs_on
from behest.v1.approval_pb2 import Approval
from behest.v1.approval_service_pb2 import DecideApprovalRequest, ListApprovalsRequest
from behest.v1.message_pb2 import Part, TextPart
from behest.v1.run_service_pb2 import CreateRunRequest, GetRunRequest
from behest.v1.run_spec_pb2 import RunSpec
from behest.v1.run_state_pb2 import RunState
from behestd.service.credentials import Credentials, Token, digest, new_token
from behestd.service.scopes import ROLES, Caller
from tests.approvals.scenes import APPROVED, CAREFUL, DENIED, pay, payments
from tests.daemons import Rejection, rejection, serve

APPROVER = ROLES["user"] | {"runs:approve"}
WHO = {
    "alice": ("alice", "acme", APPROVER),
    "alice again": ("alice", "acme", APPROVER),
    "bob": ("bob", "acme", APPROVER),
    "reader": ("reader", "acme", ROLES["user"]),
    "eve": ("eve", "other", APPROVER),
    "root": ("root", "acme", ROLES["admin"]),
}
"""Principal, namespace and scopes by credential: alice has two."""
CODE = grpc.StatusCode


@dataclass(frozen=True, slots=True)
class Scene:
    """A daemon with tokens, and what was paid."""

    stubs: Any
    tokens: dict[str, str]
    paid: list[tuple[str, int]]

    def ask(self, who: str, method: Any, request: Any) -> Any:
        """Call a method with somebody's token."""
        return method(request, metadata=(("authorization", f"Bearer {self.tokens[who]}"),), timeout=20)

    async def asking(self, who: str, said: str) -> Approval:
        """Order a run, and wait until it asks."""
        spec = RunSpec(input=[Part(text=TextPart(text=said))])
        made = await self.ask(who, self.stubs.runs.CreateRun, CreateRunRequest(spec=spec))
        query = ListApprovalsRequest(run_id=made.run.id)
        async with asyncio.timeout(20):
            while not (found := await self.ask(who, self.stubs.approvals.ListApprovals, query)).approvals:
                await asyncio.sleep(0.01)
        return found.approvals[0]

    def decide(self, who: str, asked: Approval, **more: Any) -> Any:
        """Decide, by default for what was asked."""
        fields = {"call_id": asked.call_id, "decision": APPROVED, "args_hash": asked.args_hash} | more
        return self.ask(who, self.stubs.approvals.DecideApproval, DecideApprovalRequest(**fields))

    async def refused(self, who: str, asked: Approval, **more: Any) -> Rejection:
        """Decide, and be refused."""
        return await rejection(self.decide(who, asked, **more))

    async def ended(self, who: str, asked: Approval) -> None:
        """Wait until the run has completed."""
        async with asyncio.timeout(20):
            query = GetRunRequest(run_id=asked.run_id)
            while (await self.ask(who, self.stubs.runs.GetRun, query)).run.state != RunState.RUN_STATE_COMPLETED:
                await asyncio.sleep(0.01)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    known, texts = {}, {}
    for name, (principal, namespace, scopes) in WHO.items():
        made = new_token()
        caller = Caller(principal, namespace, scopes, f"token:{made.token_id}")
        known[made.token_id], texts[name] = Token(digest(made.text), caller), made.text
    paid: list[tuple[str, int]] = []
    async with serve(credentials=Credentials(tokens=known), tools=payments(paid), operator=CAREFUL) as served:
        yield Scene(stubs_on(served.channel), texts, paid)


async def test_whoever_ordered_a_run_approves_nothing_of_it_with_whatever_credential(scene: Scene) -> None:  # S6 C139
    asked = await scene.asking("alice", pay("ann", 5))
    for who in ("alice", "alice again"):
        for decision in (APPROVED, DENIED):
            found = await scene.refused(who, asked, decision=decision)
            assert (found.code, found.reason) == (CODE.PERMISSION_DENIED, "APPROVAL_FORBIDDEN")
    found = await scene.refused("reader", asked)
    assert (found.code, found.reason) == (CODE.PERMISSION_DENIED, "AUTH_SCOPE_MISSING")
    assert scene.paid == []
    await scene.decide("bob", asked)
    await scene.ended("alice", asked)
    assert scene.paid == [("ann", 5)]


async def test_another_tenants_call_is_as_unknown_as_one_that_never_was(scene: Scene) -> None:  # S5 S6
    asked = await scene.asking("alice", pay("ann", 5))
    unknown = Approval(call_id="call_never", args_hash=asked.args_hash)
    assert await scene.refused("eve", asked) == await scene.refused("eve", unknown)
    assert (await scene.refused("eve", asked)).code is CODE.NOT_FOUND
    assert scene.paid == []


async def test_a_word_is_for_one_call_with_the_very_arguments_once(scene: Scene) -> None:  # S6
    first = await scene.asking("alice", f"{pay('ann', 5)} /next {pay('ann', 6)} /next /say done")
    other = await scene.asking("alice", pay("mallory", 1000))
    # Of another run, and for other arguments: what was looked at is not what would be sent.
    assert (await scene.refused("bob", first, args_hash=other.args_hash)).field == "args_hash"
    assert (await scene.refused("bob", other, args_hash=first.args_hash)).field == "args_hash"
    changed = sha256(b'{"to": "ann", "amount": 6}').digest()
    assert (await scene.refused("bob", first, args_hash=changed)).field == "args_hash"
    # Twice at once by two people: one counts, and the same word again by the same changes nothing.
    await scene.decide("bob", first)
    found = await scene.refused("root", first)
    assert (found.code, found.reason) == (CODE.FAILED_PRECONDITION, "APPROVAL_DECIDED")
    await scene.decide("bob", first)
    assert (await scene.refused("bob", first, decision=DENIED)).reason == "APPROVAL_DECIDED"
    query = ListApprovalsRequest(run_id=first.run_id)
    async with asyncio.timeout(20):
        while not (found := await scene.ask("bob", scene.stubs.approvals.ListApprovals, query)).approvals:
            await asyncio.sleep(0.01)
    (second,) = found.approvals
    assert second.call_id != first.call_id
    assert (await scene.refused("bob", second, args_hash=first.args_hash)).field == "args_hash"
    assert scene.paid == [("ann", 5)]


async def test_arguments_that_an_approver_edits_are_checked_as_if_the_model_had_given_them(scene: Scene) -> None:  # S6
    asked = await scene.asking("alice", pay("ann", 5))
    for bad in ('{"to": "ann"}', '{"to": "ann", "amount": 1, "amount": 2}', "[" * 40 + "]" * 40, '{"to": "\\ud800"}'):
        assert (await scene.refused("bob", asked, arguments_json=bad)).reason == "TOOL_ARGUMENTS_INVALID"
    assert scene.paid == []
