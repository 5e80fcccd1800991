"""Pages: sizes as the contract says, and tokens that fit one list, one namespace and one set of filters."""

import base64

import pytest

from behest.v1.run_service_pb2 import ListRunsRequest
from behest.v1.session_service_pb2 import ListSessionsRequest
from behestd.errors import InvalidRequest
from behestd.service.pages import Page, page_of

KINDS = (int, str)


def page(request: ListRunsRequest | ListSessionsRequest, namespace: str = "default") -> Page:
    """The page that a request of the run list asks for."""
    return page_of(request, namespace, KINDS)


def refusal(request: ListRunsRequest | ListSessionsRequest, namespace: str = "default") -> str:
    """Why the request is refused."""
    with pytest.raises(InvalidRequest) as caught:
        page(request, namespace)
    return caught.value.reason


@pytest.mark.parametrize(("asked", "given"), [(0, 50), (1, 1), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)])
def test_the_size_of_a_page_is_50_by_default_and_1000_at_most(asked: int, given: int) -> None:
    assert page(ListRunsRequest(page_size=asked)).size == given


def test_a_negative_size_is_refused() -> None:
    assert refusal(ListRunsRequest(page_size=-1)) == "REQUEST_INVALID"


def test_the_first_page_begins_at_the_start() -> None:
    assert page(ListRunsRequest()).after is None


def test_a_token_brings_back_the_position_it_was_made_of_also_with_another_size() -> None:
    request = ListRunsRequest(session_id="ses_1", labels={"b": "2", "a": "1"}, page_size=10)
    token = page(request).token(1_700_000_000_000_000_000, "run_\u00e9")
    follower = ListRunsRequest(session_id="ses_1", labels={"a": "1", "b": "2"}, page_size=20, page_token=token)
    assert page(follower).after == (1_700_000_000_000_000_000, "run_\u00e9")


def test_a_token_is_refused_by_another_list_namespace_or_filter() -> None:
    token = page(ListRunsRequest()).token(1, "run_1")
    assert refusal(ListSessionsRequest(page_token=token)) == "REQUEST_PAGE_TOKEN_INVALID"
    assert refusal(ListRunsRequest(page_token=token), "other") == "REQUEST_PAGE_TOKEN_INVALID"
    assert refusal(ListRunsRequest(page_token=token, session_id="ses_1")) == "REQUEST_PAGE_TOKEN_INVALID"


@pytest.mark.parametrize(
    "token", ["x", "=", "\u00e9", "AAAA", "A" * 40, "A" * 5000, base64.urlsafe_b64encode(b"[1,2]").decode()]
)
def test_a_token_that_was_made_up_is_refused(token: str) -> None:
    assert refusal(ListRunsRequest(page_token=token)) == "REQUEST_PAGE_TOKEN_INVALID"


def test_every_change_of_one_character_makes_a_token_invalid() -> None:
    token = page(ListRunsRequest()).token(1, "run_1")
    for place, letter in enumerate(token[:-1]):
        changed = token[:place] + ("A" if letter != "A" else "B") + token[place + 1 :]
        assert refusal(ListRunsRequest(page_token=changed)) == "REQUEST_PAGE_TOKEN_INVALID"


def test_a_position_of_other_parts_than_the_list_has_is_refused() -> None:
    for position in ((1,), ("run_1", 1), (True, "run_1"), (1, "run_1", 2)):
        token = page(ListRunsRequest()).token(*position)
        assert refusal(ListRunsRequest(page_token=token)) == "REQUEST_PAGE_TOKEN_INVALID"
