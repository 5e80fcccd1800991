"""Tests of graphs and crashes have the place on the disk and the tool server that tests of plain runs have."""

from tests.crash.conftest import home, tools

__all__ = ["home", "tools"]
