"""The contract's promises that a linter does not check, read from its descriptors. C144"""

from __future__ import annotations

import importlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor, ServiceDescriptor

ROOT = Path(__file__).parent.parent
FILES = sorted(path.stem for path in (ROOT / "proto/behest/v1").glob("*.proto"))


def files() -> list[FileDescriptor]:
    """Every file of the contract, as Python has it."""
    for name in FILES:
        importlib.import_module(f"behest.v1.{name}_pb2")
    return [descriptor_pool.Default().FindFileByName(f"behest/v1/{name}.proto") for name in FILES]


def messages(parents: list[Descriptor] | None = None) -> Iterator[Descriptor]:
    """Every message, nested ones too, the entries of maps left out."""
    if parents is None:
        parents = [message for file in files() for message in file.message_types_by_name.values()]
    for message in parents:
        if not message.GetOptions().map_entry:
            yield message
            yield from messages(list(message.nested_types))


def enums() -> Iterator[EnumDescriptor]:
    """Every enum."""
    for file in files():
        yield from file.enum_types_by_name.values()
    for message in messages():
        yield from message.enum_types


def services() -> Iterator[ServiceDescriptor]:
    """Every service."""
    for file in files():
        yield from file.services_by_name.values()


def fields() -> Iterator[FieldDescriptor]:
    """Every field of every message."""
    for message in messages():
        yield from message.fields


def test_every_enum_begins_with_a_value_that_means_unset() -> None:  # C144
    assert [enum.full_name for enum in enums() if not enum.values_by_number[0].name.endswith("_UNSPECIFIED")] == []


def test_json_that_is_carried_is_text_in_a_field_that_says_so() -> None:  # C144
    loose = {"google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue", "google.protobuf.Any"}
    kinds = {field.full_name: field.message_type.full_name for field in fields() if field.message_type is not None}
    assert [name for name, kind in kinds.items() if kind in loose] == []
    named = [field for field in fields() if field.name.endswith("_json")]
    assert len(named) > 10
    assert [field.full_name for field in named if field.type != FieldDescriptor.TYPE_STRING] == []


def test_every_list_is_paged_by_an_opaque_token() -> None:  # C144
    lists = [method for service in services() for method in service.methods if method.name.startswith("List")]
    assert len(lists) > 8
    for method in lists:
        assert {"page_size", "page_token"} <= set(method.input_type.fields_by_name), method.full_name
        assert "next_page_token" in method.output_type.fields_by_name, method.full_name


def test_every_update_names_the_fields_that_it_changes() -> None:  # C144
    updates = [method for service in services() for method in service.methods if method.name.startswith("Update")]
    assert updates
    for method in updates:
        mask = method.input_type.fields_by_name["update_mask"]
        assert mask.message_type.full_name == "google.protobuf.FieldMask", method.full_name


def test_every_call_has_a_request_and_a_response_of_its_own() -> None:  # C144
    for service in services():
        for method in service.methods:
            pair = (method.input_type.name, method.output_type.name)
            assert pair == (f"{method.name}Request", f"{method.name}Response"), method.full_name


def test_creations_can_be_repeated_by_a_request_id() -> None:  # C144
    creations = [method for service in services() for method in service.methods if method.name.startswith("Create")]
    assert [method.full_name for method in creations if "request_id" not in method.input_type.fields_by_name] == []


def test_events_are_one_oneof_whose_cases_are_its_types() -> None:  # C144
    event = descriptor_pool.Default().FindMessageTypeByName("behest.v1.Event")
    payload = event.oneofs_by_name["payload"]
    assert len(payload.fields) > 25
    for field in payload.fields:
        assert field.name == "".join(f"_{c.lower()}" if c.isupper() else c for c in field.message_type.name).lstrip("_")


@pytest.mark.timeout(120)
def test_the_sdk_is_a_package_of_its_own_with_the_contract_in_it(tmp_path: Path) -> None:  # C144
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT / "clients/python", check=True, capture_output=True)
    (wheel,) = tmp_path.glob("behest-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"behest/v1/{name}_pb2.py" for name in FILES} <= names
    assert {"behest/client.py", "behest/tools.py", "behest/py.typed"} <= names
