"""The document of what tests prove is made from the tests, and is that of today."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.coverage_doc import TARGET, TESTS, UnknownId, citations, collect, render

SOURCE = '''
"""A module. C001"""

# C002: of the whole file.

LIMIT = 3

# C003, C004
@decorated
async def test_above() -> None:
    """Prove. C005"""
    first()

    # C006
    second("C007")


def test_beside() -> None:  # ASYNC110 C008
    # N01 and C0091
    third()
'''


def test_ids_in_comments_and_docstrings_belong_to_the_function_around_or_below_them() -> None:
    assert citations(SOURCE.lstrip()) == {
        ("C001", ""),
        ("C002", ""),
        *((f"C00{number}", "test_above") for number in (3, 4, 5, 6)),
        ("C008", "test_beside"),
        ("N01", "test_beside"),
    }


def test_an_id_without_a_test_is_listed_as_not_yet_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "test_x.py"
    path.write_text("def test_it():\n    pass  # C002\n")
    document = render(collect(tmp_path))
    assert f"\n| C002 | `{tmp_path.name}/test_x.py::test_it` |\n" in document
    assert "\n| C001 | not yet |\n" in document
    path.write_text("def test_it():\n    pass  # C999\n")
    with pytest.raises(UnknownId):
        collect(tmp_path)


def test_the_document_is_current() -> None:
    assert TARGET.read_text() == render(collect(TESTS)), "run `python -m tests.tools.coverage_doc`"
