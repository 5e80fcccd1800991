"""The Go module holds what is asked of it: format, vet, tests, and that the generated code is of today's contract."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.interop.go.golang import BUILD_SECONDS, MODULE, ROOT, downloaded, go, toolchain

pytestmark = pytest.mark.timeout(BUILD_SECONDS + 120)


def test_every_file_is_formatted() -> None:
    place = toolchain()
    if place is None:
        pytest.skip("no Go here: neither in PATH nor in .venv-go (make clients-go installs it)")
    gofmt = place.resolve().parent / "gofmt"
    done = subprocess.run([str(gofmt), "-l", "."], cwd=MODULE, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == ""


@pytest.mark.parametrize("command", [("vet", "./..."), ("test", "./...")], ids=["vet", "test"])
def test_the_module_passes(command: tuple[str, ...]) -> None:
    if reason := downloaded():
        pytest.skip(f"the modules of the Go client cannot be had: {reason}")
    done = go(*command)
    assert done.returncode == 0, done.stdout


def test_the_generated_code_is_that_of_todays_contract(tmp_path: Path) -> None:
    place = toolchain()
    if place is None or downloaded():
        pytest.skip("no Go here, or its modules cannot be had")
    template = MODULE / "buf.gen.yaml"
    generated = subprocess.run(
        [ROOT / ".venv/bin/buf", "generate", "proto", "--template", template, "--output", tmp_path],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{place.parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    assert generated.returncode == 0, generated.stderr
    fresh = {path.name: path.read_bytes() for path in (tmp_path / "v1").iterdir()}
    committed = {path.name: path.read_bytes() for path in (MODULE / "v1").iterdir()}
    stale = sorted(name for name in fresh | committed if fresh.get(name) != committed.get(name))
    assert stale == [], "run make clients-go-proto"
