"""Each check of `make check` is shown to pass on a sound tree and to fail on a seeded fault.

The real targets of the real Makefile run with the project's own tools on a small copy, so a check that was
unplugged, or that looks at the wrong folder, is found here. The copy has its own tiny contract:
what is tested is the check, not our protos.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import test_architecture as architecture

ROOT = Path(__file__).resolve().parent.parent

RUN_PROTO = """\
syntax = "proto3";

package behest.v1;

import "google/rpc/status.proto";

// Run is one order being executed.
message Run {
  // Identifies the run.
  string id = 1;
  // Why it failed.
  google.rpc.Status error = 2;
}
"""
VALUES_PY = '''"""Values."""


def double(number: int) -> int:
    """Return twice the number."""
    return 2 * number
'''
PACKAGES = (
    "behestd/__init__.py",
    "clients/python/behest/__init__.py",
    "clients/python/behest/v1/__init__.py",
)
LOCKS = ("requirements.lock", "requirements-proto.lock")
COPIED = ("Makefile", "buf.yaml", "pyproject.toml", "proto/generate.py", *LOCKS, *PACKAGES)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small sound repository: our configuration, one proto, one pure module."""
    for name in ("proto/behest/v1", "behestd/core", "clients/python/behest/v1"):
        (tmp_path / name).mkdir(parents=True)
    for name in COPIED:
        shutil.copy2(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "third_party", tmp_path / "third_party")
    (tmp_path / "proto/behest/v1/run.proto").write_text(RUN_PROTO)
    (tmp_path / "behestd/core/__init__.py").write_text('"""The pure core."""\n')
    (tmp_path / "behestd/core/values.py").write_text(VALUES_PY)
    return tmp_path


def make(tree: Path, target: str) -> subprocess.CompletedProcess[str]:
    """Run one target in the tree with the tools that are already installed, never installing anything."""
    settings = {"VENV": str(ROOT / ".venv"), "VENV_PROTO": str(ROOT / ".venv-proto")}
    current = [f"--assume-old={place}/.installed" for place in settings.values()]
    words = [f"{name}={value}" for name, value in settings.items()]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *current, *words, target],
        cwd=tree,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=50,
        check=False,
    )


def assert_fault_is_found(tree: Path, target: str, seed: Callable[[], object], *, names: str) -> None:
    """The target passes, the seed is sown, the target fails and its output names the fault."""
    before = make(tree, target)
    assert before.returncode == 0, before.stdout
    seed()
    after = make(tree, target)
    assert after.returncode != 0, after.stdout
    assert names in after.stdout


def edit(path: Path, old: str, new: str) -> Callable[[], None]:
    """Return the seed that replaces a text which must be there."""

    def sow() -> None:
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return sow


def test_a_field_without_a_comment_fails_the_proto_lint(tree: Path) -> None:
    seed = edit(tree / "proto/behest/v1/run.proto", "  // Identifies the run.\n", "")
    assert_fault_is_found(tree, "check-proto-lint", seed, names='"id" should have a non-empty comment')


def test_a_lint_ignore_in_a_comment_does_not_help(tree: Path) -> None:
    seed = edit(tree / "proto/behest/v1/run.proto", "// Identifies the run.", "// buf:lint:ignore COMMENT_FIELD")
    assert_fault_is_found(tree, "check-proto-lint", seed, names='"id" should have a non-empty comment')


def test_a_badly_indented_proto_fails_the_format_check(tree: Path) -> None:
    seed = edit(tree / "proto/behest/v1/run.proto", "  string id = 1;", "      string id = 1;")
    assert_fault_is_found(tree, "check-proto-format", seed, names="run.proto")


def test_a_removed_field_fails_the_breaking_check(tree: Path) -> None:
    assert make(tree, "proto-baseline").returncode == 0
    seed = edit(tree / "proto/behest/v1/run.proto", "  // Identifies the run.\n  string id = 1;\n", "")
    assert_fault_is_found(tree, "check-proto-breaking", seed, names='field "1" with name "id"')


def test_an_added_field_passes_the_breaking_check(tree: Path) -> None:
    assert make(tree, "proto-baseline").returncode == 0
    edit(tree / "proto/behest/v1/run.proto", "id = 1;", "id = 1;\n  // The session.\n  string session_id = 3;")()
    assert make(tree, "check-proto-breaking").returncode == 0


def test_a_missing_baseline_fails_the_breaking_check(tree: Path) -> None:
    result = make(tree, "check-proto-breaking")
    assert result.returncode != 0
    assert "baseline.binpb is missing" in result.stdout


def test_an_edited_proto_fails_the_generated_is_current_check(tree: Path) -> None:
    assert make(tree, "proto").returncode == 0
    seed = edit(tree / "proto/behest/v1/run.proto", "string id = 1;", "string name = 1;")
    assert_fault_is_found(tree, "check-generated", seed, names="run_pb2.py")


def test_generated_code_without_a_source_fails_the_check_and_is_removed(tree: Path) -> None:
    assert make(tree, "proto").returncode == 0
    orphan = tree / "clients/python/behest/v1/gone_pb2.py"
    assert_fault_is_found(tree, "check-generated", orphan.touch, names="gone_pb2.py")
    assert make(tree, "proto").returncode == 0
    assert not orphan.exists()


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        ("print(1)\n", "T201"),
        ("async def wait() -> None:\n    import time\n    time.sleep(1)\n", "ASYNC251"),
        ("double = { 1:2 }\n", "faulty.py:3"),
    ],
    ids=["print", "blocking sleep", "format"],
)
def test_a_fault_of_style_fails_ruff(tree: Path, fault: str, names: str) -> None:
    faulty = tree / "behestd/core/faulty.py"
    assert_fault_is_found(tree, "check-ruff", lambda: faulty.write_text(f'"""Faulty."""\n\n{fault}'), names=names)


def test_a_wrong_type_fails_mypy(tree: Path) -> None:
    seed = edit(tree / "behestd/core/values.py", "return 2 * number", 'return "two"')
    assert_fault_is_found(tree, "check-types", seed, names="Incompatible return value type")


def test_an_unhandled_event_kind_fails_mypy(tree: Path) -> None:
    source = tree / "proto/behest/v1/run.proto"
    edit(source, "error = 2;", "error = 2;\n  // E.\n  oneof end {\n    // Won.\n    bool won = 3;\n  }")()
    assert make(tree, "proto").returncode == 0
    (tree / "behestd/core/values.py").write_text(
        '"""Values."""\n\nfrom typing import assert_never\n\nfrom behest.v1.run_pb2 import Run\n\n\n'
        'def end(run: Run) -> int:\n    """Read."""\n    match run.WhichOneof("end"):\n'
        '        case "won" | None:\n            return 1\n'
        "        case other:\n            assert_never(other)\n"
    )

    def add_a_kind() -> None:
        edit(source, "won = 3;", "won = 3;\n    // Lost.\n    bool lost = 4;")()
        assert make(tree, "proto").returncode == 0

    assert_fault_is_found(tree, "check-types", add_a_kind, names="assert_never")


@pytest.mark.parametrize(
    ("rule", "place", "source"),
    [
        (architecture.broken_arrows, "behestd/core/x.py", "from behestd.log import log"),
        (architecture.broken_arrows, "behestd/core/x.py", "from behestd.log import store"),
        (architecture.broken_arrows, "behestd/log/x.py", "import behestd.bus.bus"),
        (architecture.broken_arrows, "behestd/runtime/x.py", "from behestd.service import status"),
        (architecture.broken_arrows, "behestd/service/x.py", "from behestd import config"),
        (architecture.broken_arrows, "behestd/daemon.py", "from behest.client import Client"),
        (architecture.impure_modules, "behestd/core/x.py", "import asyncio"),
        (architecture.impure_modules, "behestd/reasoning/x.py", "def f():\n    from time import time"),
        (architecture.impure_modules, "behestd/core/x.py", "from behest.v1 import run_service_pb2_grpc"),
        (architecture.impure_modules, "behestd/core/x.py", "async def f(): ..."),
        (architecture.impure_modules, "behestd/core/x.py", "def f(stamp):\n    stamp.GetCurrentTime()"),
        (architecture.stray_grpc, "behestd/runtime/x.py", "import grpc"),
        (architecture.stray_grpc, "behestd/log/x.py", "from grpc_status import rpc_status"),
        (architecture.stray_tasks, "behestd/runtime/x.py", "import asyncio\nasyncio.create_task(f())"),
        (architecture.stray_tasks, "behestd/runtime/x.py", "from asyncio import gather"),
        (architecture.stray_tasks, "behestd/runtime/x.py", "loop.create_task(f())"),
        (architecture.stray_tasks, "behestd/service/x.py", "import asyncio\nasyncio.TaskGroup()"),
        (architecture.stray_tasks, "behestd/service/x.py", "group.create_task(f())"),
        (architecture.written_values, "behestd/core/x.py", "def f(event):\n    event.sequence = 1"),
        (architecture.written_values, "behestd/core/x.py", "def f(event):\n    event.parts.append(1)"),
        (
            architecture.written_values,
            "behestd/core/x.py",
            "def f(run):\n    last = run.end\n    del last.error",
        ),
        (architecture.oversized_code, "behestd/x.py", "x = 1\n" * 401),
        (architecture.oversized_code, "clients/python/behest/x.py", "def f():\n" + "    x = 1\n" * 60),
        (architecture.oversized_code, "behestd/x.py", "def f(a, b, c, d, e, *, g, h, i): ..."),
        (architecture.oversized_protos, "proto/behest/v1/x.proto", "//\n" * 301),
        (architecture.unpinned_locks, "requirements.lock", "--index-url https://example.org/simple"),
        (architecture.unpinned_locks, "requirements.lock", "grpcio>=1.80"),
        (architecture.unpinned_locks, "requirements.lock", "grpcio @ https://example.org/grpcio.whl"),
        (architecture.eager_packages, PACKAGES[2], "from behest.v1 import run_pb2"),
    ],
)
def test_a_fault_of_shape_fails_its_rule(
    tree: Path, rule: Callable[[Path], list[str]], place: str, source: str
) -> None:
    assert rule(tree) == []
    (tree / place).parent.mkdir(exist_ok=True)
    (tree / place).write_text(source)
    assert len(rule(tree)) == 1


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("behestd/core/x.py", "def f():\n    event = Event()\n    event.sequence = 1\n    event.x.append(2)"),
        ("behestd/core/x.py", "import hashlib\nfrom behest.v1 import run_pb2\nimport google.rpc.status_pb2"),
        ("behestd/tools/attached.py", "import asyncio\nimport grpc\nasyncio.TaskGroup()"),
        ("behestd/service/x.py", "import grpc.aio\nfrom behestd.runtime import supervisor"),
        ("behestd/runtime/x.py", "def f(group):\n    group.create_task(g())"),
        ("behestd/x.py", "class A:\n    def f(self, a, b, c, d, *, e, g, h): ..."),
    ],
)
def test_what_the_rules_allow_breaks_none_of_them(tree: Path, place: str, source: str) -> None:
    (tree / place).parent.mkdir(exist_ok=True)
    (tree / place).write_text(source)
    assert [fault for rule in architecture.RULES for fault in rule(tree)] == []
