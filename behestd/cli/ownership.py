"""Whose files a data directory holds: what root does to one must leave it to the user that the daemon runs as.

Above: the commands that write into a data directory. A service may have another user at each start (systemd gives it
one), to whom the directory is handed over only when it is not the directory's owner already.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def kept(directory: Path) -> Iterator[None]:
    """Give everything in a directory to the directory's owner in the end, whoever made it. Only root has to."""
    try:
        yield
    finally:
        if os.geteuid() == 0 and directory.is_dir():
            owner = directory.stat()
            for path in directory.resolve().rglob("*"):
                os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
