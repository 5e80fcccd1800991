"""Every test of this folder that asks for a language is made in each of them."""

from __future__ import annotations

from typing import cast

import pytest

from tests.interop.common.languages import LANGUAGES, Language


@pytest.fixture(params=LANGUAGES, ids=str)
def language(request: pytest.FixtureRequest) -> Language:
    """A language of the clients."""
    return cast("Language", request.param)
