"""Drawings of a reasoning graph, and of a run of one: for the terminal, as Mermaid, as DOT.

Above: the commands. Below: a module for each drawing. Given what a run tells (`Run.reasoning`), a drawing shows the
state of each node, how often and how long it was at work, what it consumed, and how often loops went back. Any graph
can be drawn, a wrong one too, and no text of a graph can break out of its place in a drawing.
"""

from __future__ import annotations

from behest.drawing_dot import dot
from behest.drawing_mermaid import mermaid
from behest.drawing_terminal import terminal

__all__ = ["dot", "mermaid", "terminal"]
