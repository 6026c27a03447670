"""The plain method."""

from __future__ import annotations


def test_the_plain_method_is_light() -> None:
    """Under 40 lines proves the seam light."""
    import inspect

    from pico_train.method import plain

    assert len(inspect.getsource(plain).splitlines()) < 40
