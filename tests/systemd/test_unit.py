"""What is shipped for operators, as far as it can be judged without starting it: units, scripts, pages, images."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from behestd.cli import PLACES, exits
from behestd.config import document
from behestd.config.settings import Limits
from deploy import completions, manuals

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
UNITS = DEPLOY / "systemd"
MOST_EXPOSURE = 1.5
MAKES_A_START_USELESS = {exits.CORRUPT, exits.CONFIGURATION, 2}


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def _settings(unit: str) -> dict[str, list[str]]:
    settings: dict[str, list[str]] = {}
    for line in (UNITS / unit).read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            settings.setdefault(key, []).append(value)
    return settings


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:  # S19
    for unit in UNITS.glob("behestd*"):
        text = unit.read_text().replace("/usr/bin/behestd", sys.executable)
        (tmp_path / unit.name).write_text(text)
    command = [_tool("systemd-analyze"), "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "SYSTEMD_PAGER": "cat"})
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize("unit", ["behestd.service", "behestd-proxy.service"])
def test_the_services_are_hardly_exposed(unit: str) -> None:  # S19
    command = [_tool("systemd-analyze"), "security", "--offline=true", "--no-pager", str(UNITS / unit)]
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found[1]) <= MOST_EXPOSURE, done.stdout


def test_the_unit_says_what_the_daemon_does() -> None:  # S19
    settings = _settings("behestd.service")
    assert settings["Type"] == ["notify"]
    assert set(map(int, settings["RestartPreventExitStatus"][0].split())) == MAKES_A_START_USELESS
    assert int(settings["TimeoutStopSec"][0].removesuffix("s")) > Limits().drain_seconds + 5
    assert settings["LimitCORE"] == ["0"]
    assert settings["StateDirectoryMode"] == ["0700"]
    denied = settings["IPAddressDeny"][0].split()
    assert {"169.254.0.0/16", "fd00:ec2::254/128"} <= set(denied)


def test_the_packaged_configuration_is_valid_and_listens_for_this_machine_only() -> None:
    command = [sys.executable, "-m", "behestd", "check-config", "--config", str(DEPLOY / "etc/behestd.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "server.listen = []" in done.stdout
    assert 'server.unix = "/run/behestd/behestd.sock"' in done.stdout


@pytest.mark.parametrize("name", ["postinst", "prerm", "postrm"])
def test_scripts_of_the_package_are_shell(name: str) -> None:
    subprocess.run(["sh", "-n", str(DEPLOY / "debian" / name)], check=True)


@pytest.mark.parametrize("name", ["behestd.8", "behest.1", "behestd.toml.5"])
def test_a_manual_page_is_shown_without_a_complaint(name: str, tmp_path: Path) -> None:
    page = tmp_path / name
    page.write_text(manuals.pages()[name])
    command = [_tool("man"), "--warnings", "--local-file", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "MANWIDTH": "100"})
    assert (done.stderr, done.returncode) == ("", 0)
    assert "NAME" in done.stdout


def test_the_manual_pages_hold_every_command_and_every_setting() -> None:
    pages = {name: text.replace("\\-", "-") for name, text in manuals.pages().items()}
    for command in PLACES:
        assert f".SS behestd {command} " in pages["behestd.8"], command
    keys = re.findall(r"^#(?:\s(?=\w+ is unset))?(\w+) (?:=|is unset)", document.example(), re.MULTILINE)
    assert len(keys) > 100
    for key in keys:
        assert f".B {key} " in pages["behestd.toml.5"], key


def test_the_shells_complete_commands(tmp_path: Path) -> None:
    completions.write(tmp_path)
    places = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"bash-completion/completions/behestd", "zsh/vendor-completions/_behest"} <= places
    script = tmp_path / "bash-completion/completions/behestd"
    done = subprocess.run(["bash", "-c", f'. "{script}" && complete -p behestd'], capture_output=True, text=True)
    assert done.stdout.strip().endswith("behestd"), done.stderr
    env = {**os.environ, "_BEHESTD_COMPLETE": "bash_complete", "COMP_WORDS": "behestd check", "COMP_CWORD": "1"}
    asked = subprocess.run([sys.executable, "-m", "behestd"], env=env, capture_output=True, text=True)
    assert asked.stdout.split() == ["plain,check-config"]


def test_the_image_is_small_unprivileged_and_has_a_health_check() -> None:
    """No engine runs here: this reads the file, and nothing has built it."""
    text = (DEPLOY / "docker/Dockerfile").read_text()
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    words = [line.split() for line in lines]
    assert {word for word, *_ in words} <= set(
        "FROM WORKDIR COPY RUN ENV USER VOLUME STOPSIGNAL HEALTHCHECK ENTRYPOINT CMD".split()
    )
    stages = [line for line in words if line[0] == "FROM"]
    assert len(stages) == 2
    assert all(":" in stage[1] and not stage[1].endswith(":latest") for stage in stages)
    (user,) = (line[1] for line in words if line[0] == "USER")
    assert user.split(":")[0] not in ("0", "root")
    assert any(line[0] == "HEALTHCHECK" for line in words)
    for line in words:
        if line[0] == "COPY" and not line[1].startswith("--"):
            assert all((DEPLOY.parent / source).exists() for source in line[1:-1]), line


def test_what_runs_may_be_run() -> None:
    assert (Path(__file__).with_name("boot.sh")).stat().st_mode & stat.S_IXUSR
