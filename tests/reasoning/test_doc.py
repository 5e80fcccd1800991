"""What docs/reasoning.md shows is so: its tables are those of the code, and its graphs, commands and programs run."""

from __future__ import annotations

import asyncio
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from behest import graphs
from behest.v1.tool_pb2 import SideEffect, ToolPolicy
from behestd.context.catalog import Sources
from behestd.planning.context import Registry
from behestd.reasoning.graph import validate
from behestd.reasoning.strategies import STRATEGIES
from behestd.tools.catalog import Catalog
from behestd.tools.policy import Policies
from behestd.tools.schema import Validators
from tests.daemons import Served, serve
from tests.operators.test_cli import behest
from tests.tools.reasoning_doc import TABLES, TARGET, render

DOCUMENT = TARGET.read_text()
ADDRESS = "127.0.0.1:7717"


def fenced(language: str) -> list[str]:
    """Return the blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)


FILES = {re.match(r"# (\S+)\n", block)[1]: block for block in fenced("toml")}  # type: ignore[index]
COMMANDS = [shlex.split(line) for block in fenced("sh") for line in block.splitlines()]
PROGRAMS = fenced("python")


def program(word: str) -> str:
    """Return the program of the document that has a word."""
    (found,) = (block for block in PROGRAMS if word in block)
    return found


def test_the_tables_are_current() -> None:
    assert render(DOCUMENT) == DOCUMENT, "run `python -m tests.tools.reasoning_doc`"
    assert sorted(re.findall(r"^<!-- table: (\w+) -->$", DOCUMENT, re.MULTILINE)) == sorted(TABLES)
    for strategy in STRATEGIES:
        assert f"| `{strategy.name}` |" in DOCUMENT


@pytest.mark.parametrize("name", FILES)
def test_each_graph_of_the_document_is_valid_and_has_the_name_of_its_file(name: str) -> None:
    graph = graphs.read(FILES[name], "toml")
    assert validate(graph) == []
    assert name == f"{graph.id}.toml"


def test_the_graph_in_json_is_valid() -> None:
    (block,) = fenced("json")
    assert validate(graphs.read(block, "json")) == []


async def told(served: Served, place: Path) -> dict[str, str]:
    """Run the commands of the document where its graphs are, and return what each prints."""
    for name, text in FILES.items():
        (place / name).write_text(text)
    outputs: dict[str, str] = {}

    async def run(command: list[str]) -> None:
        assert command[0] == "behest"
        code, output, errors = await behest(served, *command[1:])
        assert code == 0, (command, output, errors)
        outputs[" ".join(command[1:])] = output

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        async with asyncio.TaskGroup() as tasks:
            for command in COMMANDS:
                tasks.create_task(run(command))
    return outputs


async def test_each_command_of_the_document_does_what_it_says(served: Served, tmp_path: Path) -> None:
    outputs = await told(served, tmp_path)
    assert outputs["graphs validate plan-solve.toml"] == "valid: 3 nodes, 2 edges\n"
    assert [outputs["graphs show plan-solve.toml"], outputs["graphs show --strategy react"]] == fenced("text")
    assert all(strategy.name in outputs["graphs strategies"] for strategy in STRATEGIES)
    assert len(graphs.read(outputs["graphs show --strategy reflexion -p attempts=2 --format toml"], "toml").nodes) == 4
    for order in ("graphs run plan-solve.toml What is 17 times 23?", "run --strategy plan_and_solve -p steps=4"):
        output = next(output for command, output in outputs.items() if command.startswith(order))
        assert "What is 17 times 23?" in output


async def test_the_client_of_the_document_follows_the_nodes_of_its_run(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    text = program("strategy_parameters").replace(ADDRESS, served.daemon.addresses[0])
    names = names_of(text.replace("asyncio.run(main())", ""))
    async with asyncio.timeout(30):
        await names["main"]()
    lines = capsys.readouterr().out.splitlines()
    nodes = ["understand", "sample_1", "sample_2", "sample_3", "vote", "answer"]
    assert [f"begins: {node}" for node in nodes] == [line for line in lines if line.startswith("begins: ")]
    assert {f"ends: {node}" for node in nodes} == {line for line in lines if line.startswith("ends: ")}


async def test_a_tool_of_a_server_does_the_work_of_an_operator() -> None:  # C124
    (line,) = re.findall(r"^`(tools\.policies\..*)`\.$", DOCUMENT, re.MULTILINE)
    assert tomllib.loads(line) == {"tools": {"policies": {"count_words": {"side_effect": "pure"}}}}
    policies = Policies({"count_words": ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_PURE)})
    names = names_of(program("attach").replace("asyncio.run(main())", ""))
    async with serve(tools=lambda validators: Catalog(validators, policies)) as served, names["server"] as server:
        await server.attach(served.daemon.addresses[0], name="words")
        run = served.client.stream("count me", graph=graphs.read(FILES["counted.toml"], "toml"))
        assert re.search(r"The task has \d+ words\.", (await run.result()).text)


async def test_a_function_of_an_extension_does_the_work_of_an_operator() -> None:  # C124
    def tools(validators: Validators) -> Catalog:
        catalog = Catalog(validators)
        names_of(program("registry"))["register"](Registry(catalog, Sources()))
        return catalog

    text = FILES["counted.toml"]
    graph = graphs.read(text.replace('operator = "count_words"', 'operator = "count_letters"'), "toml")
    del graph.operators[:]
    async with serve(tools=tools) as served:
        run = served.client.stream("abc", graph=graph)
        assert re.search(r"The task has \d+ letters\.", (await run.result()).text)


def names_of(program: str) -> dict[str, Any]:
    """Run a program of the document, and return what it defines."""
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(program, str(TARGET), "exec", dont_inherit=True), names)
    return names


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!https:)([^)#]+)(?:#[^)]*)?\)", DOCUMENT))))
def test_links_lead_somewhere(link: str) -> None:
    assert (TARGET.parent / link).resolve().exists()
