"""Shell completion of both programs for bash, zsh and fish, as click writes it.

Above: `deb`, and `make completions`. The scripts ask the program itself what can follow, so they never grow old.
"""

from __future__ import annotations

import sys
from pathlib import Path

from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

import behest.cli
import behestd.cli
from behest.cli.lazy import LazyGroup

PLACES: dict[str, type[ShellComplete]] = {
    "bash-completion/completions/{}": BashComplete,
    "zsh/vendor-completions/_{}": ZshComplete,
    "fish/vendor_completions.d/{}.fish": FishComplete,
}
"""Where a shell looks, below /usr/share."""


def scripts() -> dict[str, str]:
    """Write every script, by its place below /usr/share."""
    groups = (behestd.cli.Commands(name="behestd"), LazyGroup(behest.cli.PLACES, name="behest"))
    return {place.format(group.name): _source(shell, group) for group in groups for place, shell in PLACES.items()}


def _source(shell: type[ShellComplete], group: behestd.cli.Commands | LazyGroup) -> str:
    name = str(group.name)
    complete = shell(group, {}, name, f"_{name.upper()}_COMPLETE")
    return complete.source_template % complete.source_vars() + "\n"


def write(directory: Path) -> None:
    """Write every script into a directory."""
    for name, text in scripts().items():
        place = directory / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
