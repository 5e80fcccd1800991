"""What is not in the code: ways in which data becomes code, and dependencies that nobody pinned."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("behestd", "clients/python/behest", "clients/python-lite/behest_lite")
MODULES = frozenset({"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "jsonpickle", "yaml"})
"""Modules that make objects, or code, of bytes."""
CALLS = frozenset({"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "tempfile.mktemp"})
GENERATED = ("_pb2.py", "_pb2_grpc.py")


def dangers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of everything in a module that turns data into code or into a command line."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, name.name) for name in names if name.name.partition(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in MODULES:
                yield node.lineno, module
            case ast.Call(func=func, keywords=keywords):
                called = ast.unparse(func)
                if called in CALLS:
                    yield node.lineno, called
                for keyword in keywords:
                    if keyword.arg == "shell" and not (
                        isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                    ):
                        yield node.lineno, "shell="
                    if keyword.arg in ("verify", "check_hostname") and ast.unparse(keyword.value) == "False":
                        yield node.lineno, f"{keyword.arg}=False"
            case ast.Attribute(attr="CERT_NONE" | "_create_unverified_context" as name):
                yield node.lineno, name


@pytest.mark.parametrize("source", SOURCES)
def test_no_data_becomes_code(source: str) -> None:  # S18
    paths = [path for path in (ROOT / source).rglob("*.py") if not path.name.endswith(GENERATED)]
    assert len(paths) > 10
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in paths
        for line, name in dangers(ast.parse(path.read_text()))
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from marshal import loads", "import yaml", "import shelve", "eval('1')", "exec(text)",
        "os.system('ls')", "subprocess.run('ls', shell=True)", "subprocess.run('ls', shell=flag)", "__import__(name)",
        "httpx.get(url, verify=False)", "context.verify_mode = ssl.CERT_NONE", "compile(text, '', 'exec')",
    ],
)  # fmt: skip
def test_each_danger_would_be_found(line: str) -> None:
    assert len(list(dangers(ast.parse(line)))) == 1


def test_every_dependency_is_pinned_and_what_is_declared_is_locked() -> None:  # S18
    pins = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        name, is_pinned, version = line.partition("==")
        assert is_pinned, line
        pins[_plain(name)] = version
    declared = [tomllib.loads((ROOT / path / "pyproject.toml").read_text()) for path in (".", "clients/python")]
    for project in declared:
        groups = [project["project"]["dependencies"], *project["project"].get("optional-dependencies", {}).values()]
        names = {_plain(re.split(r"[\[<>=!~; ]", needed)[0]) for group in groups for needed in group}
        assert names - {"behest", "behestd"} <= pins.keys()


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def test_the_bill_of_materials_names_what_is_locked(tmp_path: Path) -> None:  # S18
    """CycloneDX, of every distribution with version, licence and package URL; what is not installed is named too."""
    path = tmp_path / "sbom.json"
    command = [sys.executable, "-m", "tests.tools.sbom", str(path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60, capture_output=True)
    made = json.loads(path.read_text())
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.6")
    assert made["metadata"]["component"]["name"] == "behestd"
    found = {_plain(component["name"]): component["version"] for component in made["components"]}
    assert found["grpcio"]
    assert found["protobuf"]
    assert all(component["purl"].startswith("pkg:pypi/") for component in made["components"])
    assert len({component["bom-ref"] for component in made["components"]}) == len(made["components"])
    # Only what a daemon needs, extras included: no tools of development.
    assert not found.keys() & {"pytest", "mypy", "ruff", "hypothesis"}
    again = tmp_path / "again.json"
    subprocess.run([*command[:-1], str(again)], cwd=ROOT, check=True, timeout=60, capture_output=True)
    assert again.read_bytes() == path.read_bytes()
