"""Two tenants: whatever a caller names of another's, it is told what is told of things that nobody has.

One tenant has one of everything. A second one reaches for all of it through every method, and a third one for the same
things under names that were never given out. The two cannot be told apart by what they get, no answer holds a word of
the first, and of the first nothing has changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from behest.v1 import (
    agent_service_pb2,
    approval_service_pb2,
    artifact_service_pb2,
    model_service_pb2,
    reasoning_service_pb2,
    registry_service_pb2,
    run_service_pb2,
    session_data_service_pb2,
    session_service_pb2,
    tool_call_service_pb2,
    tool_service_pb2,
    usage_service_pb2,
)
from behestd.service.scopes import ADMIN, RULES, Caller
from tests.approvals.scenes import CAREFUL, payments
from tests.tenancy.callers import TENANT, Outcome, Tenant, contract, serving
from tests.tenancy.cases import CASES
from tests.tenancy.things import CANARY, Things, made_by, unknown

PREFIX = "/behest.v1."
_MADE_ID = re.compile(r"\b[a-z]{2,6}_[0-9a-f]{32}\b")
_TOKENS = ("next_page_token", "cursor", "lease_id", "event_id")


def plain(value: Any, names: Mapping[str, str], name: str = "") -> Any:
    """A value without what differs from one call to the next: new ids, times, tokens, and the names of the things."""
    if isinstance(value, Timestamp | Duration):
        return type(value).__name__
    if isinstance(value, Message):
        if value.DESCRIPTOR.name == "Event":
            return value.WhichOneof("payload")  # type: ignore[arg-type]
        return {field.name: plain(one, names, field.name) for field, one in value.ListFields()}
    if isinstance(value, str):
        if name in _TOKENS:
            return "<token>"
        for known, place in sorted(names.items(), key=lambda item: -len(item[0])):
            value = value.replace(known, place)
        return _MADE_ID.sub("<id>", value)
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>" if len(value) >= 16 else value
    if isinstance(value, Mapping):
        return {plain(key, names): plain(one, names) for key, one in value.items()}
    return value if isinstance(value, int | float) else [plain(one, names, name) for one in value]


def told(outcome: Outcome, things: Things, tenant: Tenant) -> Any:
    """What an outcome tells, in such words that two tenants' outcomes can be compared."""
    names = {**things.names(), tenant.caller.namespace: "<namespace>", tenant.caller.principal: "<principal>"}
    frames = [plain(frame, names) for frame in outcome.frames]
    if frames and all(
        not frame.keys() - {"events", "deltas", "head_sequence", "cursor", "caught_up"} for frame in frames
    ):
        # How events are spread over frames, and what came as deltas, is chance.
        frames = [kind for frame in frames for kind in frame.get("events", ())]
    metadata = {key: plain(value, names) for key, value in outcome.metadata}
    return outcome.code, outcome.reason, metadata, frames


async def state(tenant: Tenant, things: Things) -> list[bytes]:
    """All that a tenant sees of its own."""
    asked = {
        "RunService/ListRuns": run_service_pb2.ListRunsRequest(),
        "RunService/GetRun": run_service_pb2.GetRunRequest(run_id=things.run),
        "SessionService/ListSessions": session_service_pb2.ListSessionsRequest(),
        "SessionService/ListMessages": session_service_pb2.ListMessagesRequest(session_id=things.session),
        "SessionDataService/ListSessionData": session_data_service_pb2.ListSessionDataRequest(
            session_id=things.session
        ),
        "AgentService/ListAgents": agent_service_pb2.ListAgentsRequest(),
        "ApprovalService/ListApprovals": approval_service_pb2.ListApprovalsRequest(),
        "ToolCallService/ListToolCalls": tool_call_service_pb2.ListToolCallsRequest(),
        "RegistryService/ListServers": registry_service_pb2.ListServersRequest(),
        "ToolService/ListTools": tool_service_pb2.ListToolsRequest(),
        "ModelService/ListModels": model_service_pb2.ListModelsRequest(),
        "ArtifactService/ListArtifacts": artifact_service_pb2.ListArtifactsRequest(),
        "UsageService/QueryUsage": usage_service_pb2.QueryUsageRequest(),
        "ReasoningService/ListGraphs": reasoning_service_pb2.ListGraphsRequest(),
    }
    answers = [await tenant.one(PREFIX + method, request) for method, request in asked.items()]
    for model in answers[10].models:
        # The model of the daemon is everybody's, and so is when it last answered.
        model.ClearField("health")
    return [answer.SerializeToString(deterministic=True) for answer in answers]


def callers(scopes: frozenset[str]) -> list[Caller]:
    """The tenant that has everything, one that reaches for it, and one that reaches for nothing."""
    return [
        Caller("owner", "alpha", TENANT),
        Caller("thief", "bravo", scopes),
        Caller("nobod", "delta", scopes),
    ]


async def compare(scopes: frozenset[str], services: set[str]) -> None:
    """Let the second tenant and the third ask the same, and compare all that they are told."""
    plan = {"tools": payments([]), "operator": CAREFUL}
    async with serving(callers(scopes), "sqlite", **plan) as (_, (owner, thief, nobody)):
        there = await made_by(owner)
        nowhere = unknown(there)
        before = await state(owner, there)
        for name, case in CASES.items():
            if name.split("/")[0] not in services:
                continue
            for number, (stolen, made_up) in enumerate(zip(case(there), case(nowhere), strict=True)):
                outcomes = []
                for tenant, asked in ((thief, stolen), (nobody, made_up)):
                    frames = asked if isinstance(asked, tuple) else (asked,)
                    outcomes.append(await tenant.call(PREFIX + name, *frames))
                got, expected = outcomes
                assert CANARY.encode() not in got.data, (name, number)
                assert told(got, there, thief) == told(expected, nowhere, nobody), (name, number)
        assert await state(owner, there) == before


def test_every_method_of_the_contract_is_reached_for() -> None:
    assert {PREFIX + name for name in CASES} == set(contract())
    assert {name for name in RULES if name.startswith(PREFIX)} == set(contract())


async def test_what_another_tenant_has_is_what_nobody_has() -> None:  # C140, S5
    await compare(TENANT, {name.split("/")[0] for name in CASES})


async def test_an_administrator_of_one_namespace_sees_no_other() -> None:  # S5, S15
    await compare(TENANT | {ADMIN}, {name.split("/")[0] for name in CASES} - {"DaemonService"})
