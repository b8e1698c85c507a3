"""What the tests of the data share: a way to put pictures into a folder."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def save(tmp_path):
    """Save pixels, or one grey value for an 8 x 8 image, under tmp_path; returns the path."""

    def save(name, pixels=0, **options):
        if np.ndim(pixels) == 0:
            pixels = np.full((8, 8, 3), pixels, np.uint8)
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)
        return path

    return save
