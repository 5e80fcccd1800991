"""A tool server over the files of a directory: `search` and `count`. What `make demo` starts, and what to copy from.

    python tests/example_tools.py DIRECTORY [--address HOST:PORT] [--dedupe PATH] [--delay SECONDS]

Prints `ready HOST:PORT` when it serves, then `began NAME` for each call that it executes: a repeated attempt that joins
a call, or gets its remembered result, begins nothing. A token in BEHEST_TOOL_TOKEN is asked of every caller.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from behest.tools import Context, ToolError, ToolServer

MAX_FILE_BYTES = 4 * 1024 * 1024
PROGRESS_SECONDS = 0.1


@dataclass(frozen=True)
class Hit:
    """A line that holds what was searched for."""

    file: str
    line: int
    text: str


class Files:
    """The text files below a directory. What begins with a dot is left out, and links that lead out of it.

    Every call takes `delay_seconds` more than it needs, so that there is time to watch it.
    """

    def __init__(self, root: Path, delay_seconds: float = 0.0) -> None:
        self.root = root.resolve(strict=True)
        self.delay_seconds = delay_seconds

    def search(self, context: Context, pattern: str, suffix: str = "", limit: int = 20) -> list[Hit]:
        """Find lines by a regular expression, in the order of file and line.

        Args:
            pattern: a regular expression
            suffix: only files whose names end so, for example .md; empty for all
            limit: most lines to return, 1 to 200
        """
        try:
            wanted = re.compile(pattern)
        except re.error as exc:
            raise ToolError(f"{pattern!r} is no regular expression: {exc}") from exc
        self._begin(context, "search")
        hits: list[Hit] = []
        shown = 0.0
        for path in self._paths(suffix):
            if time.monotonic() > shown + PROGRESS_SECONDS:
                shown = time.monotonic()
                context.progress(f"reading {path.relative_to(self.root)}")
            for number, line in enumerate(self._lines(path), start=1):
                if wanted.search(line[:10_000]):
                    hits.append(Hit(str(path.relative_to(self.root)), number, line.strip()[:300]))
                if len(hits) >= max(1, min(limit, 200)) or context.is_cancelled:
                    return hits
        return hits

    def count(self, context: Context, what: Literal["files", "lines", "words"], suffix: str = "") -> int:
        """Count files, lines or words.

        Args:
            what: what to count
            suffix: only files whose names end so, for example .md; empty for all
        """
        self._begin(context, "count")
        if what == "files":
            return sum(1 for _ in self._paths(suffix))
        lines = (line for path in self._paths(suffix) for line in self._lines(path))
        return sum(1 if what == "lines" else len(line.split()) for line in lines)

    def _begin(self, context: Context, name: str) -> None:
        sys.stdout.write(f"began {name}\n")
        sys.stdout.flush()
        context.progress(f"looking into {self.root.name}")
        end = time.monotonic() + self.delay_seconds
        while time.monotonic() < end and not context.is_cancelled:
            time.sleep(min(0.05, self.delay_seconds))

    def _paths(self, suffix: str) -> Iterator[Path]:
        for folder, below, names in os.walk(self.root):
            below[:] = sorted(name for name in below if not name.startswith("."))
            for name in sorted(name for name in names if name.endswith(suffix) and not name.startswith(".")):
                path = Path(folder, name)
                is_inside = path.is_file() and path.resolve().is_relative_to(self.root)
                if is_inside and path.stat().st_size <= MAX_FILE_BYTES:
                    yield path

    def _lines(self, path: Path) -> list[str]:
        return path.read_bytes().decode(errors="replace").splitlines()


async def serve(files: Files, address: str, dedupe: str) -> None:
    """Serve until the process ends."""
    server = ToolServer(dedupe=dedupe, token=os.environ.get("BEHEST_TOOL_TOKEN", ""))
    server.tool(side_effect="pure")(files.search)
    server.tool(side_effect="pure")(files.count)
    async with server:
        port = await server.serve(address)
        sys.stdout.write(f"ready {address.rpartition(':')[0]}:{port}\n")
        sys.stdout.flush()
        await server.wait()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description="Serve search and count over the files of a directory.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--address", default="127.0.0.1:0")
    parser.add_argument("--dedupe", default="", help="file that remembers calls over restarts")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that each call takes beyond its work")
    options = parser.parse_args()
    asyncio.run(serve(Files(options.directory, options.delay), options.address, options.dedupe))


if __name__ == "__main__":
    main()
