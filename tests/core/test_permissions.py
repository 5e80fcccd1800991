"""Who may call what: the operator's rules and the agent's, and the words of people on calls that ask."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from behest.v1.approval_event_pb2 import ApprovalDecision
from behest.v1.definition_pb2 import PermissionRule
from behest.v1.run_state_pb2 import WaitReason
from behest.v1.tool_pb2 import ToolErrorPolicy
from behestd.core.calls import args_hash
from behestd.core.children import NoKin
from behestd.core.permission import permit
from behestd.core.signals import Decision
from behestd.core.state import Phase
from behestd.core.times import SECOND, nanoseconds
from behestd.errors import InvalidRequest, NotFound, RunEnding, WrongState
from tests.core.stage import (
    ALLOW,
    ASK,
    CLASSES,
    DENY,
    IDEMPOTENT,
    NON_IDEMPOTENT,
    PURE,
    T0,
    UNKNOWN,
    Stage,
    definition,
    kinds,
    tool,
)

APPROVED = ApprovalDecision.APPROVAL_DECISION_APPROVED
DENIED = ApprovalDecision.APPROVAL_DECISION_DENIED
DAY = 86_400
STRICTNESS = {ALLOW: 0, ASK: 1, DENY: 2}


def rule(action: Any, name: str = "*", **arguments: str) -> PermissionRule:
    return PermissionRule(tool=name, action=action, arguments=arguments, reason="because")


# --- rules ---


class Desk(NoKin):
    """Other runs whose calls wait, by (namespace, principal)."""

    def __init__(self, most: int, waiting: dict[tuple[str, str], int]) -> None:
        self.most_asked = most
        self._waiting = waiting

    def asked(self, namespace: str, principal: str, besides: str) -> int:
        """How many of a principal's calls wait."""
        assert besides == "run_1"
        return self._waiting.get((namespace, principal), 0)


@pytest.mark.parametrize(("others", "asks"), [(0, 2), (1, 2), (2, 1), (3, 0), (9, 0)])
def test_calls_ask_while_there_is_room_for_their_principal_and_are_refused_beyond(others: int, asks: int) -> None:
    pinned = definition(tool("act", NON_IDEMPOTENT), default_permission=ASK)
    desk = Desk(3, {("default", "ann"): others, ("default", "bob"): 9})
    stage = Stage(pinned, given={"kin": desk}, principal="ann")
    stage.model("", ("act", "{}"), ("act", '{"n":1}'))
    assert stage.kinds.count("approval_requested") == asks
    denied = [event.tool_denied.rule for event, _ in stage.log if event.HasField("tool_denied")]
    assert denied == ["pending_approvals"] * (2 - asks)
    assert stage.state == ("WAITING" if asks else "RUNNING")


@pytest.mark.parametrize("default", [ALLOW, ASK, DENY, 0])
@pytest.mark.parametrize("side_effect", CLASSES)
@pytest.mark.parametrize(("operator", "agent"), list(product([None, ALLOW, ASK, DENY], repeat=2)))
def test_the_stricter_list_holds_and_the_default_where_no_rule_matches(  # C037 C100
    operator: int | None, agent: int | None, side_effect: Any, default: Any
) -> None:
    act = tool("act", side_effect)
    pinned = definition(
        act,
        operator_permissions=[rule(operator)] if operator else [],
        agent_permissions=[rule(agent)] if agent else [],
        default_permission=default,
    )
    given = [action for action in (operator, agent) if action]
    expected = max(given, key=STRICTNESS.__getitem__) if given else ALLOW if side_effect == PURE else default or ASK
    assert permit(pinned, act, {}).action == expected


def test_the_last_match_of_a_list_wins() -> None:  # C100
    act = tool("act")
    for rules, expected in [([rule(DENY), rule(ALLOW, "act")], ALLOW), ([rule(ALLOW, "act"), rule(DENY)], DENY)]:
        answer = permit(definition(act, operator_permissions=rules), act, {})
        assert (answer.action, answer.reason) == (expected, "because")
    assert permit(definition(act, agent_permissions=[rule(ASK, "ac?")]), act, {}).rule == "agent:0:ac?"


@pytest.mark.parametrize(
    ("patterns", "arguments", "matches"),
    [
        ({"path": "/tmp/*"}, {"path": "/tmp/a/b"}, True),
        ({"path": "/tmp/*"}, {"path": "/etc"}, False),
        ({"path": "*"}, {}, False),
        ({"path": "*", "n": "1"}, {"path": "x", "n": 1}, True),
        ({"path": "*", "n": "1"}, {"path": "x", "n": 2}, False),
        ({"on": "true"}, {"on": True}, True),
        ({"what": '{"a":\\[1,"é"\\]}'}, {"what": {"a": [1, "é"]}}, False),
        ({"what": '{"a":[[]1,"é"]}'}, {"what": {"a": [1, "é"]}}, True),
        ({"path": "A"}, {"path": "a"}, False),
    ],
)
def test_rules_match_globs_over_arguments(patterns: dict[str, str], arguments: dict[str, Any], matches: bool) -> None:
    act = tool("act")
    answer = permit(definition(act, operator_permissions=[rule(DENY, "act", **patterns)]), act, arguments)
    assert (answer.action == DENY) is matches


@pytest.mark.parametrize(
    ("pattern", "value"),
    [
        ("666", 666.0),
        ("666", 6.66e2),
        ("0", -0.0),
        ('{"a":1,"b":[[]2,"x"]}', {"b": [2.0, "x"], "a": 1.0}),
        ("*rm -rf*", "\uff52\uff4d -rf"),
        ("*rm -rf*", "r\u200bm -rf"),
        ("*rm -rf*", "rm\u3000-rf"),
        ("*rm -rf*", "rm \u2212rf"),
        ("*rm -rf*", "r\ufe0fm -r\x00f"),
        ("/etc/*", "\u2215\u0435t\u0441/passwd"),
        ("caf\u00e9", "cafe\u0301"),
        ("*m\u0430llory*", "mallory"),
        ("*rm -rf*", '{"cmd":"r\\u006d -rf"}'),
        ("*rm -rf*", '["[\\"r\\\\u006d -rf\\"]"]'),
        ("*rm -rf*", {"deep": ['{"cmd":"r\\u006d -rf"}']}),
    ],
)
def test_no_other_spelling_of_a_value_gets_around_a_rule(pattern: str, value: object) -> None:  # C100 S10
    act = tool("act", PURE)
    denies = definition(act, operator_permissions=[rule(ALLOW), rule(DENY, "act", what=pattern)])
    assert permit(denies, act, {"what": value}).action == DENY
    assert permit(denies, act, {"what": "something else"}).action == ALLOW
    assert permit(denies, act, {"what": "[no JSON"}).action == ALLOW


@pytest.mark.parametrize("key", ["What", "WHAT", "wh\u0430t", "wh\u00adat", "\uff57hat"])
def test_no_other_spelling_of_a_name_gets_around_a_rule(key: str) -> None:  # C100 S10
    act = tool("act", PURE)
    denies = definition(act, agent_permissions=[rule(DENY, "act", what="bad*")])
    assert permit(denies, act, {key: "bad one"}).action == DENY
    assert permit(denies, act, {key: "good one"}).action == ALLOW
    doubled = permit(denies, act, {"what": "good one", key: "good one"})
    assert (doubled.action, doubled.rule) == (DENY, "arguments:look-alike")
    assert permit(definition(act), act, {"what": "bad one", key: "bad one"}).action == ALLOW


def test_what_only_looks_like_what_a_rule_allows_is_not_allowed() -> None:  # C100 S10
    act = tool("act", NON_IDEMPOTENT)
    allows = definition(act, operator_permissions=[rule(ALLOW, "act", to="ann")], default_permission=ASK)
    assert permit(allows, act, {"to": "ann"}).action == ALLOW
    for arguments in ({"to": "\u0430nn"}, {"To": "ann"}, {"to": '"ann"'}, {"to": "a\u200bnn"}):
        assert permit(allows, act, arguments).action == ASK


def test_a_look_alike_can_make_an_answer_stricter_and_never_milder() -> None:  # C100 S10
    act = tool("act")
    rules = [rule(DENY, "act", to="m*"), rule(ASK, "act", to="mallory")]
    pinned = definition(act, operator_permissions=rules)
    assert permit(pinned, act, {"to": "mallory"}).action == ASK
    assert permit(pinned, act, {"to": "m\u0430llory"}).action == DENY


def test_strings_that_nest_too_deep_are_refused_where_a_rule_names_them() -> None:  # S10 S11
    act = tool("act", PURE)
    pinned = definition(act, operator_permissions=[rule(DENY, "act", what="*rm*")])
    for deep in ("[" * 100 + "]" * 100, "[" * 50_000 + "]" * 50_000):
        answer = permit(pinned, act, {"what": deep})
        assert (answer.action, answer.rule) == (DENY, "arguments:depth")
        assert permit(pinned, act, {"other": deep}).action == ALLOW


def test_a_key_given_twice_makes_arguments_unreadable() -> None:  # S11
    for arguments in ('{"n":1,"n":2}', '{"n":{"m":1,"m":1}}', '{"n":1,"\\u006e":2}'):
        stage = Stage(definition(tool("act"), operator_permissions=[rule(ALLOW)]))
        stage.model("", ("act", arguments))
        assert stage.last("tool_failed").reason == "TOOL_ARGUMENTS_INVALID"
        assert "tool_started" not in stage.kinds


def test_a_denied_call_is_an_error_result_and_the_others_go_ahead() -> None:  # C100
    stage = Stage(definition(tool("act"), operator_permissions=[rule(DENY, "act", n="1"), rule(ALLOW, "x")]))
    stage.model("", ("act", '{"n":1}'), ("act", '{"n":2}'))
    assert stage.last("tool_denied").rule == "operator:0:act"
    stage.tool(1)
    assert stage.result_text(0) == "because"
    stage = Stage(definition(tool("act", NON_IDEMPOTENT), default_permission=DENY))
    stage.model("", ("act", "{}"))
    assert "not permitted" in stage.result_text()


# --- words of people ---


def asking(count: int = 1, *, pinned: Any = None) -> Stage:
    """A run whose calls ask."""
    stage = Stage(pinned or definition(tool("act", NON_IDEMPOTENT), default_permission=ASK))
    stage.model("", *[("act", f'{{"n":{number}}}') for number in range(count)])
    return stage


def test_a_call_that_asks_parks_the_run_and_an_approval_sends_it() -> None:  # C038
    stage = asking()
    assert kinds([stage.last("run_waiting")]) == ["run_waiting"]
    assert stage.state == "WAITING"
    assert stage.last("run_waiting").reason == WaitReason.WAIT_REASON_APPROVAL
    stage.now_ns += 3600 * SECOND
    assert kinds(stage.decision(APPROVED)) == ["approval_decided", "run_resumed", "tool_started"]
    assert stage.last("tool_started").allowed_by == "approval:ann"
    assert stage.last("tool_started").args_hash == stage.last("approval_requested").args_hash
    assert nanoseconds(stage.last("run_resumed").deadline) == T0 + 7200 * SECOND


def test_a_refusal_reaches_the_model_with_its_reason() -> None:  # C038
    stage = asking()
    stage.decision(DENIED, reason="too dear")
    assert stage.last("tool_denied").rule == "approval"
    assert stage.result_text() == "the call was refused: too dear"
    assert stage.state == "RUNNING"
    stage = asking()
    stage.decision(DENIED)
    assert stage.result_text() == "the call was refused"


def test_an_unanswered_request_expires_as_denied() -> None:  # C039
    stage = asking()
    stage.wait_for_alarm()
    assert stage.now_ns == T0 + DAY * SECOND
    decided = stage.last("approval_decided")
    assert (decided.decision, decided.by) == (ApprovalDecision.APPROVAL_DECISION_EXPIRED, "")
    assert stage.state == "RUNNING"
    assert "nobody answered" in stage.result_text()


def test_a_request_waits_across_a_takeover() -> None:  # C040
    stage = asking()
    stage.crash()
    assert stage.state == "WAITING"
    assert stage.run.step.calls[0].phase is Phase.ASKED
    stage.decision(APPROVED)
    assert stage.call().attempt == 1


def test_one_approval_of_several_lets_its_call_go_and_the_run_waits_again() -> None:
    stage = asking(3)
    stage.decision(APPROVED, 1)
    assert stage.state == "RUNNING"
    stage.decision(DENIED, 2)
    stage.tool(1)
    assert stage.state == "WAITING"
    stage.decision(APPROVED, 0)
    stage.tool(0)
    assert stage.run.step.number == 2


def test_a_refusal_leaves_the_run_waiting_for_the_other_requests() -> None:
    stage = asking(2)
    stage.decision(DENIED, 0)
    assert stage.state == "WAITING"
    stage.decision(DENIED, 1)
    assert stage.state == "RUNNING"


def test_requests_that_expire_at_different_times_expire_each_at_its_own() -> None:
    pinned = definition(tool("act", IDEMPOTENT), default_permission=ASK)
    stage = asking(2, pinned=pinned)
    stage.decision(APPROVED, 0)
    stage.wait(20)
    stage.tool(0)
    stage.wait_for_alarm()
    assert stage.now_ns == T0 + DAY * SECOND
    assert stage.run.step.number == 2


def test_two_requests_expire_together() -> None:
    stage = asking(2)
    stage.wait_for_alarm()
    assert stage.kinds.count("tool_denied") == 2
    assert stage.run.step.number == 2


def test_edited_arguments_are_what_is_sent() -> None:  # N03
    stage = asking()
    stage.decision(APPROVED, arguments_json='{"n":9}')
    started = stage.last("tool_started")
    assert started.arguments_json == '{"n":9}'
    assert started.args_hash != stage.last("approval_requested").args_hash


def test_edited_arguments_are_checked_again() -> None:  # N03 S6
    rules = [rule(ASK), rule(DENY, "act", n="666")]
    stage = asking(pinned=definition(tool("act", NON_IDEMPOTENT), operator_permissions=rules))
    stage.givens["validate"] = lambda _tool, arguments: "bad" if "bad" in arguments else ""
    for arguments, reason in [
        ('{"n":"bad"}', "TOOL_ARGUMENTS_INVALID"),
        ("[]", "TOOL_ARGUMENTS_INVALID"),
        ('{"n":666}', "TOOL_DENIED"),
    ]:
        with pytest.raises(InvalidRequest) as raised:
            stage.decision(APPROVED, arguments_json=arguments)
        assert raised.value.reason == reason
    stage.decision(APPROVED, arguments_json='{"n":7}')
    assert stage.call().attempt == 1


def test_a_decision_is_for_the_arguments_that_were_looked_at() -> None:  # N03
    stage = asking()
    with pytest.raises(InvalidRequest) as raised:
        stage.decision(APPROVED, args_hash=args_hash('{"n":1}'))
    assert raised.value.violations[0][0] == "args_hash"
    stage.decision(APPROVED, args_hash=args_hash('{"n":0}'))
    assert stage.call().attempt == 1


def test_a_decision_is_used_once() -> None:  # N03
    stage = asking(2)
    stage.decision(APPROVED, 0)
    for decision in (APPROVED, DENIED):
        with pytest.raises(WrongState) as raised:
            stage.decision(decision, 0)
        assert raised.value.reason == "APPROVAL_DECIDED"


def test_a_decision_after_the_request_expired_is_refused() -> None:  # C039
    stage = asking()
    stage.now_ns += DAY * SECOND
    with pytest.raises(WrongState) as raised:
        stage.decision(APPROVED)
    assert raised.value.reason == "APPROVAL_EXPIRED"


def test_a_decision_about_nothing_is_not_found() -> None:
    stage = asking()
    with pytest.raises(NotFound) as raised:
        stage.do(Decision("call_x", APPROVED, "ann"))
    assert raised.value.reason == "APPROVAL_NOT_FOUND"


def test_a_run_that_ends_takes_no_decision() -> None:
    pinned = definition(tool("act", NON_IDEMPOTENT), tool("free", IDEMPOTENT), agent_permissions=[rule(ASK, "act")])
    stage = Stage(pinned)
    stage.model("", ("act", "{}"), ("free", "{}"))
    stage.cancel()
    for _ in range(2):
        with pytest.raises(RunEnding) as raised:
            stage.decision(APPROVED)
        assert raised.value.reason == "RUN_ENDING"
        if stage.state == "CANCELLING":
            stage.tool(1)
    assert stage.state == "CANCELLED"


@pytest.mark.parametrize("expires", [True, False])
def test_a_refusal_ends_the_run_where_the_operator_says_so(expires: bool) -> None:
    fails = ToolErrorPolicy.TOOL_ERROR_POLICY_FAIL_RUN
    stage = asking(2, pinned=definition(tool("act", NON_IDEMPOTENT, on_error=fails), default_permission=ASK))
    if expires:
        stage.wait_for_alarm()
    else:
        stage.decision(DENIED)
    assert (stage.state, stage.reason) == ("FAILED", "TOOL_DENIED")
    assert stage.kinds.count("approval_decided") == 1


def test_an_approval_and_a_doubt_are_waited_for_together() -> None:
    pinned = definition(tool("act", NON_IDEMPOTENT), agent_permissions=[rule(ASK, "act", n="1")])
    stage = asking(2, pinned=pinned)
    stage.tool_breaks(0, executed=UNKNOWN)
    assert stage.last("run_waiting").reason == WaitReason.WAIT_REASON_APPROVAL
    stage.decision(DENIED, 1)
    assert stage.state == "WAITING"
    stage.wait_for_alarm()
    assert stage.reason == "TOOL_OUTCOME_UNKNOWN"


def test_a_doubt_that_nobody_settles_ends_the_run_while_others_still_ask() -> None:
    pinned = definition(tool("act", NON_IDEMPOTENT), agent_permissions=[rule(ASK, "act", n="1")])
    stage = Stage(pinned)
    stage.model("", ("act", '{"n":0}'), ("act", '{"n":1}'))
    stage.tool_breaks(0, executed=UNKNOWN)
    stage.now_ns += DAY * SECOND
    stage.wait(0)
    assert stage.state == "FAILED"
