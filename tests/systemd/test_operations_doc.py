"""docs/operations.md: every command of it is run, in its order, on a machine of its own with the service installed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.systemd.test_service import Service, machine, package, service

__all__ = ["machine", "package", "service"]

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/operations.md").read_text()
FIRST = ("Install", "Secure", "Change")
MARK = "-- exported --"

pytestmark = pytest.mark.timeout(600)


def fences() -> list[tuple[str, str]]:
    """Read the commands, with the headings that they stand under."""
    found, heading = [], ""
    for match in re.finditer(r"^#+ ([^\n]*)$|^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        if match[2] is None:
            heading = match[1]
        else:
            found.append((heading, match[2]))
    return found


async def test_the_first_steps_of_the_guide_do_what_they_say(service: Service) -> None:
    """As the test of all commands, up to a daemon that is secured."""
    await follow(service, [(heading, commands) for heading, commands in fences() if heading in FIRST])


@pytest.mark.proof
async def test_every_command_of_the_guide_does_what_it_says(service: Service) -> None:
    await follow(service, fences())


async def follow(service: Service, steps: Sequence[tuple[str, str]]) -> None:
    """Run commands. What is exported in one place stands in those after it, as in the shell of whoever reads on."""
    exported = ""
    for heading, commands in steps:
        script = f"set -euo pipefail\n{exported}\n{commands}\necho '{MARK}'\nexport -p\n"
        # Nobody starts a service so often in so short a time.
        await service.machine.run("systemctl", "reset-failed", "behestd.service", check=False)
        output = await service.machine.run("bash", "-c", script)
        told, _, exported = output.rpartition(MARK)
        assert "Traceback" not in told, (heading, told)
    assert await service.machine.show("behestd.service", "ActiveState") == "active"


def test_the_guide_has_a_command_for_everything_that_it_is_about() -> None:
    headings = {heading for heading, _ in fences()}
    assert headings >= {"Install", "Secure", "Change", "Observe", "Back up", "Upgrade"}
    wrong = {
        "The disk is full", "The store failed (70), again and again", "Data is damaged (65)", "It takes no new runs",
        "Something has to stop now",
        "A run does not move", "A tool server is lost", "A token has leaked", "A certificate is renewed",
    }  # fmt: skip
    assert headings >= wrong


def test_every_link_of_the_guide_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", PAGE)
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_no_command_of_the_guide_shows_a_secret_to_the_machine() -> None:
    """A secret goes by a file or a pipe: an argument is read by everybody on the machine."""
    for _, commands in fences():
        assert not re.search(r"--token[ =]|api_key = \"(?!env:|file:|credential:)", commands)
