import pytest

from prime_xmc.serving.limits import Limits


def test_bounds_are_positive():
    with pytest.raises(ValueError, match=r"expected limits\.top_k of at least 1, got 0"):
        Limits(top_k=0)
    with pytest.raises(ValueError, match=r"expected limits\.body_seconds of at least 1, got nan"):
        Limits(body_seconds=float("nan"))


def test_a_full_request_has_to_fit_the_queue():
    with pytest.raises(ValueError, match=r"limits\.waiting of at least limits\.texts=8, .* got 7"):
        Limits(texts=8, waiting=7)
    assert Limits(texts=8, waiting=8).waiting == 8
