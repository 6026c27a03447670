"""Wilson's interval of a share against scipy."""

from __future__ import annotations

import pytest
from pico_analyze.statistics import wilson
from scipy import stats


@pytest.mark.parametrize(("k", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (42, 97)])
def test_wilsons_interval_is_scipys(k: int, n: int) -> None:
    theirs = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == (pytest.approx(theirs.low), pytest.approx(theirs.high))


@pytest.mark.parametrize(("k", "n"), [(1, 0), (0, 0), (-1, 5), (6, 5)])
def test_what_is_no_share_is_refused(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="is not a share"):
        wilson(k, n)
