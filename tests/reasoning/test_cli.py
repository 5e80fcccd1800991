"""`behest graphs`, and runs of graphs at the command line: against a daemon, in a pipe and in a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from behest.cli import PLACES
from behest.cli.lazy import LazyGroup
from behest.cli.live import Live, cropped, wrapped
from behest.graphs import read, write
from behest.v1.event_pb2 import Event
from behest.v1.graph_pb2 import FanOut, Graph, GraphEdge, GraphNode, Pipeline
from behest.v1.node_event_pb2 import NodeCompleted, NodeStarted
from behest.v1.run_pb2 import Reasoning
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer
from behest.v1.tool_pb2 import SideEffect, ToolPolicy
from tests.daemons import Served
from tests.operators.test_cli import as_json, behest
from tests.reasoning.mind import ANSWER, PLAN, REACT, THREE, Says, thinking, three
from tests.reasoning.terminal import terminal
from tests.tool_process import tool_server


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The example of three nodes, as a file."""
    place = tmp_path / "three.toml"
    place.write_text(write(three(), "toml"))
    return place


async def registered(served: Served, address: str) -> None:
    """Have the daemon dial a tool server whose tools may be called by anybody."""
    policy = ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_PURE)
    server = Server(
        name="files",
        address=address,
        connection=ServerConnection.SERVER_CONNECTION_DIALLED,
        offers=[ServerOffer.SERVER_OFFER_TOOLS],
        tool_policies={"*": policy},
    )
    await served.client.servers.register(server)


# --- kept, checked, drawn ---


async def test_a_graph_is_kept_changed_listed_drawn_and_deleted(file: Path) -> None:  # C131
    async with thinking(THREE) as (served, _):
        made = await behest(served, "graphs", "create", str(file), "--id", "mine")
        assert made[:2] == (0, "mine is at version 1\n")
        changed = write(three("mine"), "json").replace('"format": 1,', '"format": 1, "description": "adds",')
        made = await behest(served, "graphs", "update", "-", "--expected-version", "1", said=changed)
        assert made[:2] == (0, "mine is at version 2\n")
        assert (await as_json(served, "graphs", "list"))["description"] == "adds"
        code, stdout, _ = await behest(served, "graphs", "show", "mine", "--version", "1", "--format", "toml")
        assert (code, read(stdout, "toml")) == (0, three("mine"))
        assert (await behest(served, "graphs", "delete", "mine"))[:2] == (0, "deleted mine\n")
        missing = await behest(served, "graphs", "show", "mine")
        assert (missing[0], "REASONING_GRAPH_NOT_FOUND" in missing[2]) == (1, True)


async def test_what_is_wrong_with_a_graph_is_said_with_the_node(file: Path) -> None:  # C125
    wrong = three()
    wrong.nodes.add(id="lonely", operator="none")
    del wrong.edges[1:]
    async with thinking(THREE) as (served, _):
        assert (await behest(served, "graphs", "validate", str(file)))[:2] == (0, "valid: 3 nodes, 2 edges\n")
        code, stdout, _ = await behest(served, "graphs", "validate", "-", said=write(wrong, "json"))
        assert code == 1
        assert "answer: unreachable: " in stdout
        assert "lonely: bad operator: " in stdout
        code, stdout, _ = await behest(served, "graphs", "validate", "-", "--output", "json", said=write(wrong, "toml"))
        kinds = {problem["node"]: problem["kind"] for problem in json.loads(stdout)["problems"]}
        assert (code, kinds["answer"]) == (1, "GRAPH_PROBLEM_KIND_UNREACHABLE")
    code, _, stderr = await behest(None, "graphs", "validate", "-", said='{"format": 1, "knots": []}')
    assert (code, "stdin: knots: unknown key" in stderr) == (1, True)


async def test_files_are_drawn_without_a_daemon(file: Path) -> None:
    code, stdout, _ = await behest(None, "graphs", "show", str(file))
    assert (code, [line.split()[1] for line in stdout.splitlines() if "○" in line]) == (0, ["plan", "solve", "answer"])
    code, stdout, _ = await behest(None, "graphs", "show", str(file), "--format", "mermaid")
    assert (code, "flowchart" in stdout) == (0, True)


async def test_operators_and_strategies_are_listed_and_a_strategy_is_drawn() -> None:  # C130
    async with thinking(THREE) as (served, _):
        _, stdout, _ = await behest(served, "graphs", "operators")
        assert [line.split()[0] for line in stdout.splitlines()][1:4] == ["act", "analyze", "answer"]
        assert len(stdout.splitlines()) == 26
        shown = await as_json(served, "graphs", "strategies", "react")
        assert [parameter["name"] for parameter in shown["parameters"]] == ["steps"]
        _, stdout, _ = await behest(served, "graphs", "show", "--strategy", "react", "-p", "steps=3")
        assert "think" in stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["graphs", "run"],
        ["graphs", "run", "three", "text", "more"],
        ["graphs", "run", "three", "-p", "steps=3"],
        ["graphs", "show"],
        ["run", "--graph", "three", "--strategy", "react", "text"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(LazyGroup(PLACES, name="behest"), arguments).exit_code == 2


# --- run ---


async def test_in_a_pipe_each_change_is_a_line_beside_the_answer(file: Path, tmp_path: Path) -> None:  # C131
    numbers = tmp_path / "numbers.txt"
    numbers.write_text("2 and 2")
    async with thinking(THREE) as (served, _):
        order = ("--goal", "add", "--criterion", "it is a number", "--fact", "2 is even", "--input", str(numbers))
        code, stdout, stderr = await behest(served, "graphs", "run", str(file), *order)
        assert (code, stdout) == (0, f"{ANSWER}\n")
        notes = [line.split()[:2] for line in stderr.splitlines() if line[0] in "▶✔"]
        assert notes == [[mark, node] for node in ("plan", "solve", "answer") for mark in "▶✔"]
        [run] = [run async for run in served.client.runs.list()]
        reasoning = (await served.client.runs.get(run.id)).reasoning
        assert (reasoning.task.goal.description, list(reasoning.task.goal.success_criteria)) == (
            "add",
            ["it is a number"],
        )
        assert (reasoning.task.context.input, reasoning.task.context.facts[0].text) == ("2 and 2", "2 is even")
        code, stdout, _ = await behest(served, "graphs", "show", run.id)
        assert (code, stdout.count("✔")) == (0, 3)
        shown = await as_json(served, "graphs", "show", run.id)
        assert [visit["started"]["node"] for visit in shown["visits"]] == ["plan", "solve", "answer"]


async def test_in_a_terminal_the_three_nodes_are_drawn_as_they_change(file: Path) -> None:
    async with thinking(THREE) as (served, mind):
        solving, answering = mind.shut("solve"), mind.shut("answer")
        async with terminal(served.daemon.addresses[0], "graphs", "run", str(file), "2 and 2") as shell:
            await shell.shows("✔ plan", "▶ solve", "○ answer")
            solving.set()
            await shell.shows("✔ plan", "✔ solve", "▶ answer")
            answering.set()
            assert await shell.end() == 0
            screen = await shell.shows("✔ plan", "✔ solve", "✔ answer", ANSWER)
    assert sum("plan" in line for line in screen) == 1
    assert screen[-1] == ANSWER


async def test_in_a_terminal_react_is_drawn_while_a_real_tool_server_works(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("# Notes\n")
    async with tool_server(tmp_path) as tools, thinking(REACT) as (served, mind):
        await registered(served, tools.address)
        acting, answering = mind.shut("act"), mind.shut("answer")
        order = ("run", "--strategy", "react", "-p", "steps=3", "how many files are there?")
        async with terminal(served.daemon.addresses[0], *order) as shell:
            await shell.shows("✔ think", "▶ act")
            acting.set()
            await shell.shows("→ count", "← count: 1", "▶ answer")
            answering.set()
            assert await shell.end() == 0
            screen = await shell.shows("✔ answer")
        assert screen[-1] == "one file"
        assert await tools.stop() == ["count"]
    assert mind.asked == ["think", "act", "observe", "think", "answer"]


async def test_a_watch_that_comes_late_draws_what_was_before(file: Path) -> None:
    async with thinking(THREE) as (served, mind):
        opened = mind.shut("answer")
        run = await served.client.run("2 and 2", graph=three())
        async for change in run.nodes():
            if change.node == "answer":
                sequence = change.event.sequence
                break
        async with terminal(served.daemon.addresses[0], "watch", run.run_id, "--after", str(sequence)) as shell:
            await shell.shows("✔ plan", "✔ solve", "▶ answer")
            opened.set()
            assert await shell.end() == 0
            await shell.shows("✔ answer", ANSWER)


async def test_a_node_that_fails_is_drawn_before_the_reason(file: Path) -> None:
    async with (
        thinking({**THREE, "solve": "/fail REQUEST_INVALID"}) as (served, _),
        terminal(served.daemon.addresses[0], "graphs", "run", str(file), "2 and 2") as shell,
    ):
        assert await shell.end() == 1
        await shell.shows("✔ plan", "✘ solve", "error: REASONING_NODE_FAILED")


async def test_an_interrupt_cancels_the_run_and_the_drawing_shows_how_far_it_was(file: Path) -> None:
    async with thinking(THREE) as (served, mind):
        mind.shut("solve")
        async with terminal(served.daemon.addresses[0], "graphs", "run", str(file), "2 and 2") as shell:
            await shell.shows("✔ plan", "▶ solve")
            shell.interrupt()
            assert await shell.end() == 3
            await shell.shows("cancelling", "✔ plan", "– solve", "○ answer")


async def test_a_run_goes_on_anew_from_a_visit(file: Path) -> None:
    async with thinking(THREE) as (served, mind):
        run = await as_json(served, "run", "--graph", str(file), "2 and 2", "--no-watch")
        await served.client.watch(run["id"]).result()
        code, stdout, stderr = await behest(served, "retry", run["id"], "--visit", "2")
        assert (code, stdout) == (0, f"{ANSWER}\n")
        assert "▶ plan" not in stderr
        assert mind.asked == ["plan", "solve", "answer", "solve", "answer"]


async def test_texts_of_parallel_nodes_do_not_mix_with_the_answer() -> None:
    graph = three()
    graph.nodes.insert(1, GraphNode(id="other", operator="solve"))
    del graph.edges[:]
    for name in ("solve", "other"):
        graph.edges.append(GraphEdge(**{"from": "plan", "to": name}, fan_out=FanOut(parallelism=2)))
        graph.edges.append(GraphEdge(**{"from": name, "to": "answer"}, pipeline=Pipeline()))
    says: Says = {"plan": PLAN, "solve": "/delay 5 /words 20", "answer": f"/delay 5 /say {ANSWER}"}
    async with thinking(says) as (served, _):
        code, stdout, stderr = await behest(served, "graphs", "run", "-", "2 and 2", said=write(graph, "json"))
    assert (code, stdout) == (0, f"{ANSWER}\n")
    assert stderr.index("▶ other") < stderr.index("✔ solve")


# --- what is drawn ---


def chain(length: int) -> Graph:
    """A chain of nodes."""
    edges = [GraphEdge(**{"from": f"n{at}", "to": f"n{at + 1}"}, pipeline=Pipeline()) for at in range(length - 1)]
    return Graph(nodes=[GraphNode(id=f"n{at}", operator="solve") for at in range(length)], edges=edges)


def happened(**payload: object) -> Event:
    """An event."""
    event = Event(**payload)  # type: ignore[arg-type]
    event.record_time.FromSeconds(1_700_000_000)
    return event


def test_a_graph_that_is_larger_than_the_terminal_is_summed_up() -> None:
    live = Live(Reasoning(graph=chain(30)))
    live.take(happened(node_started=NodeStarted(visit=1, node="n0", operator="solve")), "")
    live.take(happened(node_completed=NodeCompleted(visit=1, node="n0")), "")
    live.take(happened(node_started=NodeStarted(visit=2, node="n1", operator="solve")), "")
    lines = live.lines(80, 24)
    assert lines[0] == "1 of 30 nodes ended, 1 at work"
    assert lines[1].startswith("▶ n1  solve")
    assert len(live.lines(80, 70)) == 60


@pytest.mark.parametrize("rows", [4, 10, 24])
def test_no_line_is_wider_and_no_drawing_higher_than_the_terminal(rows: int) -> None:
    live = Live(Reasoning(graph=chain(3)))
    live.take(happened(), "漢字 and\x1b[2J more " * 200)
    lines = live.lines(30, rows)
    assert len(lines) < rows
    assert all(sum(2 if letter in "漢字" else 1 for letter in line) < 30 for line in lines)
    assert "\x1b" not in "".join(lines)


def test_lines_are_cut_and_wrapped_by_what_a_terminal_counts() -> None:
    assert cropped("a long line", 6) == "a lon…"
    assert cropped("", 6) == ""
    assert wrapped("漢字漢字", 5) == ["漢字", "漢字"]
    assert wrapped("one\n\ntwo", 10) == ["one", "", "two"]
