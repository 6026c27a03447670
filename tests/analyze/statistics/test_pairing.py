"""Which runs are paired, by keys alone; which stand out."""

from __future__ import annotations

from typing import Any

import pytest
from pico_analyze.statistics import choose_pairs


@pytest.mark.parametrize(
    ("first", "second", "pairs"),
    [
        ("abc", "abc", [(0, 0), (1, 1), (2, 2)]),
        ("abc", "cab", [(0, 1), (1, 2), (2, 0)]),
        ("abcde", "b", [(1, 0)]),
        ("abcd", "abcx", [(0, 0), (1, 1), (2, 2)]),
        ("abcde", "abcxy", []),  # three of five are below two thirds
        ("abc", "abx", []),  # two pairs of three
        ("abcdef", "abcdxy", [(0, 0), (1, 1), (2, 2), (3, 3)]),
        ("abc", "xyz", []),
        ("aab", "ab", []),  # which of two equal keys would be a choice
        ("", "abc", []),
    ],
)
def test_pairs_are_made_where_enough_runs_have_a_partner(first: str, second: str, pairs: list[Any]) -> None:
    assert list(choose_pairs(list(first), list(second)).pairs) == pairs


def test_an_unknown_key_has_no_partner() -> None:
    found = choose_pairs([None, None, None], [None, None, None])
    assert (found.pairs, found.matched) == ((), 0)
    assert found.unpaired == ((0, 1, 2), (0, 1, 2))


def test_runs_without_a_partner_are_listed() -> None:
    found = choose_pairs(list("abcd"), list("xcba"))
    assert found.pairs == ((0, 3), (1, 2), (2, 1))
    assert found.unpaired == ((3,), (0,))
    assert choose_pairs(list("abc"), list("abx")).matched == 2
