"""What root does to a data directory leaves it to the user that the daemon runs as."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from behestd.cli.ownership import kept

SERVICE = 61_234
"""A user of no account, as systemd gives one to a service."""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_makes_in_a_data_directory_belongs_to_the_directorys_owner(tmp_path: Path) -> None:  # S20
    secret, data = tmp_path / "secret", tmp_path / "data"
    secret.touch()
    data.mkdir()
    os.chown(data, SERVICE, SERVICE)
    (tmp_path / "link").symlink_to(data)
    with pytest.raises(ValueError, match="half done"), kept(tmp_path / "link"):
        (data / "blobs").mkdir()
        (data / "blobs/new").touch()
        (data / "out").symlink_to(secret)
        raise ValueError("half done")
    owners = {path.lstat().st_uid for path in (data, *data.rglob("*"))}
    assert owners == {SERVICE}
    assert secret.stat().st_uid == 0


def test_a_directory_that_is_not_there_is_left_alone(tmp_path: Path) -> None:
    with kept(tmp_path / "nothing"):
        pass
    assert not (tmp_path / "nothing").exists()
