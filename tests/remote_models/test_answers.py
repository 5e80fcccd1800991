"""What a remote provider may say and what not: every answer that does not add up is a typed failure, never a crash."""

from __future__ import annotations

import math

import pytest

from behest.v1.chat_pb2 import FinishReason
from behest.v1.chat_service_pb2 import Chat, ChatDelta, ChatEnd, StreamChatResponse, ToolCallDelta
from behest.v1.embedding_service_pb2 import Embedding, EmbedRequest, EmbedResponse
from behest.v1.message_pb2 import JsonPart, Message, Part, ReasoningPart, Role, ToolCall
from behest.v1.model_pb2 import Model, ModelCapabilities, ModelLimits, Price
from behest.v1.usage_pb2 import Usage, UsageSource
from behestd.errors import InvalidRequest
from behestd.providers.failure import ProviderFailure
from behestd.providers.listing import MAX_MODELS, catalogued
from behestd.providers.remote_answer import ANSWER_LIMIT_BYTES, Answer, vectors
from tests.providers.conformance import user
from tests.remote_models.model_peer import end, model, piece

ASKED = Chat(model="far/m", messages=[user("hello")])


def call(name: str = "look", arguments: str = "{}", **fields: str) -> Part:
    return Part(tool_call=ToolCall(name=name, arguments_json=arguments, **fields))


def call_piece(name: str = "look", arguments: str = "", part: int = 0) -> StreamChatResponse:
    return StreamChatResponse(
        deltas=[ChatDelta(part=part, tool_call=ToolCallDelta(name=name, arguments_json=arguments))]
    )


def taken(*frames: StreamChatResponse) -> ChatEnd:
    answer = Answer(ASKED)
    return [answer.take(frame) for frame in frames][-1].end


WRONG = {
    "another text": (piece("hello"), end("help")),
    "no pieces": (end("hello"),),
    "half the pieces": (piece("hel"), end("hello")),
    "more pieces": (piece("hello"), piece(" there"), end("hello")),
    "a part too many": (piece("a"), piece("b", part=1), end("a")),
    "a part of two kinds": (piece("a"), StreamChatResponse(deltas=[ChatDelta(reasoning="a")]), end("aa")),
    "another kind in the end": (piece("{}"), end("", call(arguments="{}"))),
    "a piece of no kind": (StreamChatResponse(deltas=[ChatDelta(part=0)]),),
    "a negative part": (piece("a", part=-1),),
    "a part far away": (piece("a", part=1_000_000),),
    "a call without a name": (call_piece(""), end("", call(""))),
    "a call of another name": (call_piece("look"), end("", call("leap"))),
    "other arguments": (call_piece(arguments='{"a":1}'), end("", call(arguments='{"a":2}'))),
    "no finish reason": (piece("a"), end("a", finish_reason=FinishReason.FINISH_REASON_UNSPECIFIED)),
    "not the assistant": (end(message=Message(role=Role.ROLE_USER)),),
    "a part that no model says": (end("", Part(json=JsonPart(json="{}"))),),
    "a part of no kind": (end("", Part()),),
    "tokens below none": (end(usage=Usage(input_tokens=-1)),),
    "half a call that is shown as a whole answer": (call_piece(arguments='{"a'), end()),
    "too much": (piece("a" * ANSWER_LIMIT_BYTES), piece("a")),
}


@pytest.mark.parametrize("frames", WRONG.values(), ids=WRONG)
def test_an_answer_that_does_not_add_up_is_malformed(frames: tuple[StreamChatResponse, ...]) -> None:
    with pytest.raises(ProviderFailure) as caught:
        taken(*frames)
    assert caught.value.reason == "PROVIDER_MALFORMED_OUTPUT"


def test_frames_go_on_as_they_are() -> None:
    frame = piece("hello")
    assert Answer(ASKED).take(frame) is frame


def test_the_end_is_put_into_the_form_of_every_provider() -> None:
    told = taken(
        piece("well "),
        call_piece("look", part=1),
        end("well ", call(arguments="", id="theirs"), model="m", finish_reason=FinishReason.FINISH_REASON_TOOL_CALLS),
    )
    (_, made) = told.message.parts
    assert (made.tool_call.provider_call_id, made.tool_call.id, made.tool_call.arguments_json) == ("theirs", "", "{}")
    assert (told.model, told.usage.input_tokens, told.usage.attempts) == ("far/m", 7, 1)
    assert told.usage_source == UsageSource.USAGE_SOURCE_REPORTED


def test_usage_that_is_not_told_is_estimated() -> None:
    told = taken(piece("hello"), end("hello", usage=Usage(), usage_source=UsageSource.USAGE_SOURCE_REPORTED))
    assert told.usage_source == UsageSource.USAGE_SOURCE_ESTIMATED
    assert told.usage.input_tokens > 0
    assert told.usage.output_tokens > 0


def test_what_a_server_says_of_the_cost_is_left_out() -> None:
    told = taken(piece("a"), end("a", usage=Usage(input_tokens=1, cost_micro_usd=0, attempts=40)))
    assert not told.usage.HasField("cost_micro_usd")
    assert told.usage.attempts == 1


def test_a_finish_reason_that_is_not_known_is_another_one() -> None:
    assert taken(piece("a"), end("a", finish_reason=99)).finish_reason == FinishReason.FINISH_REASON_OTHER


def test_half_a_call_is_none_where_the_answer_was_cut() -> None:
    cut = FinishReason.FINISH_REASON_LENGTH
    told = taken(piece("a"), call_piece(arguments='{"a', part=1), end("a", finish_reason=cut))
    assert [part.WhichOneof("kind") for part in told.message.parts] == ["text"]


def test_thoughts_that_are_signed_and_not_shown_need_no_pieces() -> None:
    told = taken(end("", Part(reasoning=ReasoningPart(signature=b"s"))))
    assert told.message.parts[0].reasoning.signature == b"s"


def embedded(*rows: list[float], **fields: object) -> EmbedResponse:
    return EmbedResponse(embeddings=[Embedding(values=row) for row in rows], **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "response",
    [
        embedded([1.0]),
        embedded([1.0], [1.0], [1.0]),
        embedded([1.0], [1.0, 2.0]),
        embedded([], []),
        embedded([1.0], [math.nan]),
        embedded([1.0], [math.inf]),
        embedded([1.0], [1.0], usage=Usage(input_tokens=-5)),
    ],
)
def test_vectors_that_are_no_answer_are_malformed(response: EmbedResponse) -> None:
    with pytest.raises(ProviderFailure) as caught:
        vectors(EmbedRequest(model="far/v", inputs=["a", "b"]), response)
    assert caught.value.reason == "PROVIDER_MALFORMED_OUTPUT"


def test_vectors_of_another_length_than_was_asked_for_are_malformed() -> None:
    with pytest.raises(ProviderFailure):
        vectors(EmbedRequest(model="far/v", inputs=["a"], dimensions=3), embedded([1.0, 2.0]))


def test_vectors_keep_their_order_and_get_their_model_and_usage() -> None:
    given = vectors(EmbedRequest(model="far/v", inputs=["a", "b"]), embedded([1.0], [2.0], model="v"))
    assert [list(each.values) for each in given.embeddings] == [[1.0], [2.0]]
    assert (given.model, given.usage.attempts) == ("far/v", 1)
    assert given.usage.input_tokens > 0


def listed(*models: Model, chat: bool = True, embeddings: bool = True) -> list[str]:
    return [each.id for each in catalogued("far", models, chat=chat, embeddings=embeddings)]


def test_models_get_the_name_of_their_server_in_front_and_keep_what_they_are() -> None:
    limits, price = ModelLimits(context_window_tokens=9), Price(input_micro_usd=3)
    given = Model(
        id="vendor/m", provider_id="vendor", capabilities=ModelCapabilities(chat=True), limits=limits, prices=[price]
    )
    given.is_default, given.paused, given.health.failures = True, True, 3
    (made,) = catalogued("far", [given], chat=True, embeddings=True)
    assert (made.id, made.provider_id) == ("far/vendor/m", "far")
    assert (made.limits, list(made.prices)) == (limits, [price])
    assert not (made.is_default or made.paused or made.HasField("health"))


def test_only_what_is_offered_is_taken() -> None:
    both = Model(id="b", capabilities=ModelCapabilities(chat=True, embeddings=True))
    given = (model("a"), both, model("v", embeds=True), Model(id="nothing"))
    assert listed(*given) == ["far/a", "far/b", "far/v"]
    assert listed(*given, embeddings=False) == ["far/a", "far/b"]
    assert listed(*given, chat=False) == ["far/b", "far/v"]
    (made, _) = catalogued("far", given, chat=True, embeddings=False)[0:2]
    assert not made.capabilities.embeddings


def test_names_that_daemons_repeat_to_each_other_are_left_out() -> None:
    assert listed(model("a/b/c"), model("near/far/near/far/near/far/echo")) == ["far/a/b/c"]


@pytest.mark.parametrize(
    "models",
    [
        (model(""),),
        (model("a b"),),
        (model("a\n"),),
        (model("m" * 256),),
        (model("a"), model("a")),
        (model("a", limits=ModelLimits(context_window_tokens=-1)),),
        (model("a", prices=[Price(input_micro_usd=-1)]),),
        tuple(model(f"m{number}") for number in range(MAX_MODELS + 1)),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(models: tuple[Model, ...]) -> None:
    with pytest.raises(InvalidRequest):
        listed(*models)
