"""TensorFlow's own reader of event files reads what was written, checksums and all."""

import numpy as np
import pytest
from PIL import Image

from unet_keras.events import EventFile


def read(folder):
    tf = pytest.importorskip("tensorflow")
    (file,) = folder.iterdir()
    return list(tf.compat.v1.train.summary_iterator(str(file)))


def test_scalars_and_images_are_read_back(tmp_path):
    board = EventFile(tmp_path / "board")
    assert not (tmp_path / "board").exists()  # until there is something to write
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype="uint8")
    board.scalar("val_loss", 0.1, 1)
    board.image("samples", Image.fromarray(pixels), 300)
    board.scalar("übel", -1e30, 2**40)
    first, loss, picture, last = read(tmp_path / "board")
    assert first.file_version == "brain.Event:2" and loss.wall_time > 1e9
    assert (loss.step, picture.step, last.step) == (1, 300, 2**40)
    assert (loss.summary.value[0].tag, last.summary.value[0].tag) == ("val_loss", "übel")
    assert loss.summary.value[0].simple_value == np.float32(0.1)
    assert last.summary.value[0].simple_value == np.float32(-1e30)
    image = picture.summary.value[0].image
    assert (image.height, image.width, image.colorspace) == (9, 7, 3)
    import tensorflow as tf

    np.testing.assert_array_equal(tf.io.decode_png(image.encoded_image_string).numpy(), pixels)


@pytest.mark.parametrize("value", [1e39, np.float64(-1e300), np.inf, np.nan])
def test_figures_beyond_float32_end_no_training(tmp_path, value):
    EventFile(tmp_path).scalar("loss", value, 1)
    with np.errstate(over="ignore"):
        np.testing.assert_equal(read(tmp_path)[1].summary.value[0].simple_value, float(np.float32(value)))


def test_the_checksum_is_that_of_the_standard():
    """RFC 3720, appendix B.4: 32 bytes of zeros, of ones, and counting up, masked as the record format says."""
    from struct import unpack

    from unet_keras.events import _masked_checksum

    known = {bytes(32): 0x8A9136AA, b"\xff" * 32: 0x62A8AB43, bytes(range(32)): 0x46DD794E}
    for content, crc in known.items():
        rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
        assert unpack("<I", _masked_checksum(content))[0] == (rotated + 0xA282EAD8) % 2**32
