"""What is taken for a whole number."""

import numpy as np
import pytest

from unet_keras.checks import check_counts, check_open_counts, check_seed, is_int, is_whole


@pytest.mark.parametrize("value", [1, 10**30, np.int64(3), np.uint8(1)])
def test_integers_are_whole(value):
    assert is_whole(value)
    check_counts(value=value)
    check_open_counts(value=value, other=None)
    check_seed(value)


@pytest.mark.parametrize("value", [True, np.True_, 2.0, np.float32(2), "2", None, [2], np.array([2, 3]), float("nan")])
def test_everything_else_is_not(value):
    assert not is_whole(value)
    with pytest.raises(ValueError, match="steps must be a whole number of 1 or more, got "):
        check_counts(least=1, steps=value)
    with pytest.raises(ValueError, match="seed must be a whole number of 0 or more, got "):
        check_seed(value)


def test_configurations_hold_pythons_own_integers_alone():
    assert is_int(3) and is_int(0, least=0)
    assert not any(map(is_int, (np.int64(3), True, 3.0, 0)))


def test_the_least_that_is_taken():
    assert is_whole(-2, least=-2) and not is_whole(-3, least=-2) and not is_whole(0)
    check_seed(0)
    with pytest.raises(ValueError, match="size must be a whole number of 1 or more, got 0"):
        check_open_counts(size=0)
    with pytest.raises(ValueError, match="seed must be a whole number of 0 or more, got -1"):
        check_seed(-1)
