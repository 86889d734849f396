"""Reports of the demo need its shipped results, which tests of the app turn off."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from psvit_core.storage.shipped import SWITCH_ENV, shipped_bundles


@pytest.fixture(scope="module", autouse=True)
def shipped_results() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH_ENV, "1")
        shipped_bundles.cache_clear()
        yield
    shipped_bundles.cache_clear()
