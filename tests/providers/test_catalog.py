"""The catalog: who is there, what a name means, and what a model is refused for before anything leaves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from behest.v1.chat_pb2 import ResponseFormat
from behest.v1.chat_service_pb2 import Chat
from behest.v1.message_pb2 import AudioPart, FilePart, ImagePart, Message, Part, Role, ToolResult
from behest.v1.tool_pb2 import Tool
from behestd.errors import BehestError, NotFound
from behestd.providers.catalog import Catalog, Snapshot, check, snapshot
from behestd.providers.scripted import Scripted
from tests.providers.conformance import user


def shipped(**fields: object) -> Snapshot:
    return snapshot([Scripted()], default_model="scripted/echo", default_embedding_model="scripted/embed", **fields)


def reason(call: Callable[[], object]) -> str:
    with pytest.raises(BehestError) as caught:
        call()
    return caught.value.reason


def test_a_model_is_found_by_id_alias_or_as_the_default() -> None:
    found = shipped(aliases={"talk": "scripted/text-only"})
    assert found.resolve("scripted/echo").model.id == "scripted/echo"
    assert found.resolve("talk").model.id == "scripted/text-only"
    assert found.resolve("").model.is_default
    assert found.resolve("talk").provider.id == "scripted"
    assert found.resolve_embedding("").model.id == "scripted/embed"


# C002
@pytest.mark.parametrize(
    "name,expected",
    [
        ("scripted/none", "PROVIDER_MODEL_NOT_FOUND"),
        ("nobody/model", "PROVIDER_NOT_FOUND"),
        ("gone", "PROVIDER_MODEL_NOT_FOUND"),
        ("dangling", "PROVIDER_NOT_FOUND"),
        ("/", "PROVIDER_NOT_FOUND"),
    ],
)
def test_an_unknown_name_is_not_found(name: str, expected: str) -> None:
    found = shipped(aliases={"dangling": "gone/model"})
    with pytest.raises(NotFound) as caught:
        found.resolve(found.aliases.get(name, name))
    assert caught.value.reason == expected


def test_a_model_without_embeddings_makes_none() -> None:
    assert reason(lambda: shipped().resolve_embedding("scripted/echo")) == "PROVIDER_CAPABILITY_MISSING"


# C002
def test_providers_are_registered_replaced_listed_and_removed() -> None:
    catalog = Catalog(shipped())
    before = catalog.current
    first, second = Scripted("alpha"), Scripted("alpha")
    assert catalog.register(first) == ()
    assert list(catalog.current.providers) == ["alpha", "scripted"]
    assert reason(lambda: catalog.register(second)) == "TOOL_SERVER_NAME_TAKEN"
    assert catalog.register(second, replace=True) == (first,)
    assert catalog.current.provider("alpha") is second
    assert catalog.remove("alpha") == (second,)
    assert reason(lambda: catalog.remove("alpha")) == "PROVIDER_NOT_FOUND"
    assert list(before.providers) == ["scripted"]
    assert catalog.current.resolve("").model.id == "scripted/echo"


def test_a_swap_hands_back_who_left_and_leaves_the_old_view_whole() -> None:
    old = shipped()
    catalog = Catalog(old)
    kept, new = old.providers["scripted"], Scripted("new")
    assert catalog.swap(snapshot([kept, new])) == ()
    assert catalog.swap(snapshot([new])) == (kept,)
    assert old.resolve("").provider is kept
    assert reason(lambda: catalog.current.resolve("scripted/echo")) == "PROVIDER_NOT_FOUND"


def test_two_providers_of_one_id_are_refused() -> None:
    assert reason(lambda: snapshot([Scripted(), Scripted()])) == "TOOL_SERVER_NAME_TAKEN"


def with_part(part: Part) -> Chat:
    return Chat(messages=[Message(role=Role.ROLE_USER, parts=[part])])


PICTURE = Part(image=ImagePart(uri="https://example.org/a.png"))
NEEDS = {
    "tools": Chat(messages=[user("hi")], tools=[Tool(name="now")]),
    "image_input": with_part(PICTURE),
    "audio_input": with_part(Part(audio=AudioPart(artifact_id="a"))),
    "file_input": with_part(Part(file=FilePart(artifact_id="a"))),
    "json_object": Chat(response_format=ResponseFormat(kind="RESPONSE_FORMAT_KIND_JSON_OBJECT")),
    "json_schema": Chat(response_format=ResponseFormat(kind="RESPONSE_FORMAT_KIND_JSON_SCHEMA")),
}


# C003
@pytest.mark.parametrize("capability", NEEDS)
def test_a_call_that_asks_too_much_of_a_model_is_refused(capability: str) -> None:
    able, unable = (shipped().resolve(f"scripted/{name}").model for name in ("echo", "text-only"))
    check(NEEDS[capability], able)
    with pytest.raises(BehestError) as caught:
        check(NEEDS[capability], unable)
    assert caught.value.reason == "PROVIDER_CAPABILITY_MISSING"
    assert caught.value.metadata == {"model": "scripted/text-only", "capability": capability}


def test_a_picture_in_a_tool_result_counts_too() -> None:
    result = Part(tool_result=ToolResult(call_id="c", parts=[PICTURE]))
    model = shipped().resolve("scripted/text-only").model
    assert reason(lambda: check(with_part(result), model)) == "PROVIDER_CAPABILITY_MISSING"


def test_an_embedding_model_does_not_chat() -> None:
    model = shipped().resolve("scripted/embed").model
    assert reason(lambda: check(Chat(messages=[user("hi")]), model)) == "PROVIDER_CAPABILITY_MISSING"
