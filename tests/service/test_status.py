"""The table from errors to codes, held against the contract: what error_reason.proto promises is what is sent."""

import inspect
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from behest.v1 import error_reason_pb2
from behestd import errors
from behestd.config.source import Problem
from behestd.service import status
from tests.tools import errors_doc

REASONS = {reason.name: reason for reason in errors_doc.reasons(errors_doc.SOURCE.read_text())}
SAMPLES = {
    "str": "text",
    "int": 7,
    "float": 1.5,
    "bytes": b"bytes",
    "bool": True,
    "tuple[tuple[str, str], ...]": (("graph.nodes[a]", "is wrong"), ("graph.edges[0]", "is wrong too")),
    "Sequence[Problem]": (Problem("behestd.toml", "limits.run", "is wrong"),),
}


def branches() -> list[type[errors.BehestError]]:
    """The classes that the table names, the root apart."""
    return [branch for branch in status.CODES if branch is not errors.BehestError]


def leaves(root: type[errors.BehestError] = errors.BehestError) -> Iterator[type[errors.BehestError]]:
    """Every error class that has its own reason."""
    for child in root.__subclasses__():
        if child not in status.CODES and "reason" not in inspect.signature(child).parameters:
            yield child
        yield from leaves(child)


def sample(leaf: type[errors.BehestError]) -> errors.BehestError:
    """An error of a leaf, with arguments made up by the names of their types; those with defaults are left out."""
    parameters = [p for p in inspect.signature(leaf).parameters.values() if p.default is inspect.Parameter.empty]
    named = {p.name: SAMPLES[str(p.annotation)] for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD}
    return leaf(**named)


def detail(found: Status, kind: type[Message]) -> list[Message]:
    """The details of one kind."""
    unpacked = []
    for packed in found.details:
        if packed.Is(kind.DESCRIPTOR):
            message = kind()
            packed.Unpack(message)
            unpacked.append(message)
    return unpacked


def info(found: Status) -> ErrorInfo:
    """The one ErrorInfo of a status."""
    (only,) = detail(found, ErrorInfo)
    assert isinstance(only, ErrorInfo)
    return only


def test_reasons_of_the_contract_are_unique_and_the_document_knows_them_all() -> None:
    names = [name.removeprefix(errors_doc.PREFIX) for name in error_reason_pb2.ErrorReason.keys()]
    assert len(names) == len(set(names))
    assert set(names) - {"UNSPECIFIED"} == set(REASONS)
    assert len({reason.number for reason in REASONS.values()}) == len(REASONS)


@pytest.mark.parametrize("reason", [r for r in REASONS.values() if r.code], ids=lambda reason: reason.name)
def test_each_reason_has_the_code_that_its_comment_says_when_raised_by_its_branch(reason: errors_doc.Reason) -> None:
    (branch,) = [branch for branch in branches() if status.CODES[branch].name == reason.code]
    made: errors.BehestError
    if branch is errors.InvalidRequest:
        made = errors.InvalidRequest("field", "problem", reason=reason.name)
    else:
        made = branch(reason.name, "text")
    found = status.to_status(made)
    assert grpc.StatusCode[reason.code].value[0] == found.code
    assert (info(found).reason, info(found).domain) == (reason.name, "behest")


@pytest.mark.parametrize("leaf", list(leaves()), ids=lambda leaf: leaf.__name__)
def test_each_leaf_is_a_reason_of_the_contract_with_its_code_and_metadata(leaf: type[errors.BehestError]) -> None:
    made = sample(leaf)
    reason = REASONS[made.reason]
    assert status.code_of(made).name == reason.code
    assert set(made.metadata) == set(reason.keys) or set(reason.keys) < set(made.metadata)


def test_every_code_but_ok_and_unknown_has_exactly_one_branch() -> None:
    codes = [status.CODES[branch] for branch in branches()]
    assert sorted(code.name for code in codes) == sorted(
        code.name for code in grpc.StatusCode if code.name not in {"OK", "UNKNOWN"}
    )


def test_an_error_of_no_branch_is_a_fault_of_ours() -> None:
    made = errors.BehestError("RUNTIME_INTERNAL", "text")
    assert status.code_of(made) is grpc.StatusCode.INTERNAL
    assert status.is_fault(made)
    assert not status.is_fault(errors.RunNotFound("run_1"))


def test_wrong_fields_are_listed_with_what_is_wrong_and_no_more_than_fit() -> None:
    made = errors.InvalidRequest("spec.agent", "is required", more=tuple((f"field{n}", "bad") for n in range(20)))
    (fields,) = detail(status.to_status(made), BadRequest)
    assert isinstance(fields, BadRequest)
    assert len(fields.field_violations) == status.MAX_VIOLATIONS
    first = fields.field_violations[0]
    assert (first.field, first.description) == ("spec.agent", "is required")


def test_a_delay_is_told_twice_once_for_us_and_once_for_grpc() -> None:
    made = errors.Overloaded("runs", 5)
    found = status.to_status(made)
    (retry,) = detail(found, RetryInfo)
    assert isinstance(retry, RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == 1000
    sent = dict(status.trailers(made, found))
    assert sent[status.PUSHBACK_KEY] == "1000"
    assert sent[status.DETAILS_KEY] == found.SerializeToString()


def test_an_error_without_a_delay_sends_no_advice() -> None:
    made = errors.RunNotFound("run_1")
    found = status.to_status(made)
    assert detail(found, RetryInfo) == []
    assert [key for key, _ in status.trailers(made, found)] == [status.DETAILS_KEY]


def test_an_error_of_a_foreign_protocol_has_no_details() -> None:
    made = errors.NotFound("", "no such service")
    found = status.to_status(made)
    assert len(found.details) == 0
    assert status.trailers(made, found) == ()


def test_the_error_that_a_run_keeps_has_reason_and_metadata_but_no_advice() -> None:
    found = status.run_error(errors.Overloaded("runs", 5))
    assert (info(found).reason, dict(info(found).metadata)) == ("RUNTIME_OVERLOADED", {"limit": "5"})
    assert detail(found, RetryInfo) == []


def test_an_exception_that_ends_a_run_is_kept_without_its_text() -> None:
    found = status.run_error(ValueError("sk-secret"))
    assert info(found).reason == "RUNTIME_INTERNAL"
    assert found.code == grpc.StatusCode.INTERNAL.value[0]
    assert b"sk-secret" not in found.SerializeToString()


@pytest.mark.parametrize("letter", ["x", "\udcff", "\u00e9", "\U0001f600"], ids=["ascii", "surrogate", "two", "four"])
def test_an_error_of_any_size_fits_the_trailers_of_a_call(letter: str) -> None:
    made = errors.InvalidRequest(letter * 9000, letter * 9000, more=((letter * 9000, letter * 9000),) * 50)
    made.metadata.update({f"{letter * 500}{n}": letter * 5000 for n in range(50)})
    made.retry_seconds = 1.0
    found = status.to_status(made)
    as_base64, percent_encoded = len(found.SerializeToString()) * 4 / 3, len(found.message.encode()) * 3
    assert as_base64 + percent_encoded < 8 * 1024
    assert found.message.endswith("…")


def test_the_document_of_errors_is_current() -> None:
    assert errors_doc.TARGET.read_text() == errors_doc.render(errors_doc.SOURCE.read_text())
