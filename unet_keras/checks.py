"""What whole numbers must be to be taken, and what is said where they are not: alike in the whole package."""

from numbers import Integral


def is_whole(value, least: int = 1) -> bool:
    """Tell whether a value is an integer, of Python's or NumPy's and no bool, of ``least`` or more."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least


def is_int(value, least: int = 1) -> bool:
    """Tell whether a value is such an integer of Python's own, which alone a saved configuration can hold."""
    return isinstance(value, int) and is_whole(value, least)


def check_counts(**counts):
    """Raise ValueError unless each is a whole number of 1 or more."""
    for name, value in counts.items():
        if not is_whole(value):
            raise ValueError(f"{name} must be a whole number of 1 or more, got {value!r}.")


def check_open_counts(**counts):
    """Raise ValueError unless each is a whole number of 1 or more, or None, which leaves it open."""
    check_counts(**{name: value for name, value in counts.items() if value is not None})


def check_seed(seed):
    """Raise ValueError unless a seed is a whole number of 0 or more."""
    if not is_whole(seed, least=0):
        raise ValueError(f"seed must be a whole number of 0 or more, got {seed!r}.")
