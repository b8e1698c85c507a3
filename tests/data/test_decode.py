import struct
import warnings

import numpy as np
import PIL
import pytest
from PIL import Image

from unet_keras.data import image_folder
from unet_keras.data.decode import load_image, readable_extensions

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def stripes(*colours, width, height):
    """Upright stripes, each of `width` pixels."""
    row = np.repeat(np.array(colours, np.uint8), width, axis=0)
    return np.tile(row, (height, 1, 1))


def test_an_image_of_the_right_size_is_copied(save):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(load_image(save("a.png", pixels), 6, 9), pixels)


@pytest.mark.parametrize(("width", "first"), [(12, 3), (7, 0), (9, 1), (6, 0)])
def test_the_crop_is_the_exact_centre(save, width, first):
    pixels = np.random.default_rng(0).integers(0, 256, (6, width, 3), dtype=np.uint8)
    np.testing.assert_array_equal(load_image(save("wide.png", pixels), 6, 6), pixels[:, first : first + 6])
    tall = pixels.transpose(1, 0, 2).copy()
    np.testing.assert_array_equal(load_image(save("tall.png", tall), 6, 6), tall[first : first + 6])


def test_the_crop_is_the_centre_after_scaling(save):
    image = load_image(save("a.png", stripes(RED, GREEN, BLUE, width=64, height=64)), 32, 32)
    np.testing.assert_array_equal(image[:, 3:-3], np.broadcast_to(GREEN, (32, 26, 3)))
    assert np.all(image.argmax(axis=-1) == 1)


def test_a_larger_size_scales_up(save):
    image = load_image(save("a.png", stripes(RED, GREEN, BLUE, width=2, height=2)), 32, 32)
    np.testing.assert_array_equal(image[:, 8:24], np.broadcast_to(GREEN, (32, 16, 3)))


def test_the_aspect_is_kept(save):
    y, x = np.mgrid[-40:40, -60:60]
    disc = np.where((x**2 + y**2 < 30**2)[..., None], 0, 255).astype(np.uint8).repeat(3, axis=-1)
    dark = load_image(save("a.png", disc), 32, 32)[..., 0] < 128
    assert dark.any(axis=0).sum() == dark.any(axis=1).sum() == 24  # 60 of 80 pixels across, at 32 for 80


def test_height_comes_before_width(save):
    image = load_image(save("a.png", stripes(RED, BLUE, width=10, height=10)), 4, 8)
    assert image.shape == (4, 8, 3)
    assert image.argmax(axis=-1).tolist() == [[0] * 4 + [2] * 4] * 4


def test_scaling_down_averages(save):
    pixels = np.indices((64, 64)).sum(0) % 2 * 255
    image = load_image(save("a.png", pixels.astype(np.uint8)), 8, 8)
    assert np.abs(image.astype(int) - 127.5).max() < 8


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (50000, 1)])
def test_tiny_and_thin_images(save, shape):
    image = load_image(save("a.png", np.full((*shape, 3), 77, np.uint8)), 16, 16)
    np.testing.assert_array_equal(image, np.full((16, 16, 3), 77))


def test_transparent_pixels_turn_white(save):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, 4:] = (255, 0, 0, 255)
    pixels[0, 7] = (0, 0, 0, 128)
    image = load_image(save("a.png", pixels), 8, 8)
    np.testing.assert_array_equal(image[:, :4], np.broadcast_to(WHITE, (8, 4, 3)))
    np.testing.assert_array_equal(image[1:, 4:], np.broadcast_to(RED, (7, 4, 3)))
    np.testing.assert_array_equal(image[0, 7], (127, 127, 127))


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
def test_a_transparent_colour_turns_white(save, mode):
    image = Image.new("RGB", (8, 8), "black")
    image.paste("white", (4, 0, 8, 8))
    image = image.convert(mode)
    key = (0, 0, 0) if mode == "RGB" else image.getpixel((0, 0))
    path = save("a.png", image, transparency=key)
    np.testing.assert_array_equal(load_image(path, 8, 8), np.full((8, 8, 3), 255))


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow 12 cannot open such a palette itself")
def test_a_palette_with_alpha(tmp_path):
    header = struct.pack("<BBBHHBHHHHBB", 0, 1, 1, 0, 2, 32, 0, 0, 2, 1, 8, 0)  # a Targa of 2 x 1, 32-bit palette
    (tmp_path / "a.tga").write_bytes(header + bytes([255, 0, 0, 255, 0, 0, 0, 0]) + bytes([0, 1]))
    np.testing.assert_array_equal(load_image(tmp_path / "a.tga", 1, 2), [[BLUE, WHITE]])


def test_grey_with_alpha(save):
    pixels = np.zeros((4, 4, 2), np.uint8)
    pixels[:2] = (60, 255)
    image = load_image(save("a.png", Image.fromarray(pixels, "LA")), 4, 4)
    assert image[0, 0].tolist() == [60] * 3
    assert image[3, 3].tolist() == [255] * 3


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_sixteen_bits_are_scaled_not_clipped(save, ending):
    values = np.array([[0, 257, 257 * 100, 65535]], np.uint16)
    image = load_image(save("a" + ending, values), 1, 4)
    assert image[0].tolist() == [[0] * 3, [1] * 3, [100] * 3, [255] * 3]


def test_palette_grey_and_cmyk(save):
    palette = Image.fromarray(stripes(RED, BLUE, width=4, height=8)).quantize(2)
    np.testing.assert_array_equal(load_image(save("p.gif", palette), 8, 8)[:, :4], np.broadcast_to(RED, (8, 4, 3)))
    grey = Image.new("L", (8, 8), 90)
    np.testing.assert_array_equal(load_image(save("l.png", grey), 8, 8), np.full((8, 8, 3), 90))
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(load_image(save("c.jpg", cmyk, quality=95), 8, 8).astype(int) - RED).max() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(save, orientation):
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4, :4], upright[:4, 4:], upright[4:, :4] = RED, GREEN, BLUE
    undo = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(upright.transpose(1, 0, 2), 2),
        8: np.rot90(upright, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save("a.png", np.ascontiguousarray(undo[orientation]), exif=exif)
    np.testing.assert_array_equal(load_image(path, 8, 8), upright)


def test_large_jpegs_are_decoded_small_and_alike(save):
    smooth = Image.fromarray(np.random.default_rng(0).integers(64, 192, (9, 12, 3), dtype=np.uint8))
    path = save("a.jpg", smooth.resize((1280, 960), Image.Resampling.BICUBIC))
    whole = load_image(save("a.png", Image.open(path).convert("RGB")), 24, 24).astype(int)
    assert np.abs(load_image(path, 24, 24) - whole).max() <= 2


def test_jpegs_are_not_decoded_smaller_than_needed(save):
    noise = np.random.default_rng(0).integers(0, 256, (960, 1280, 3), dtype=np.uint8)
    path = save("a.jpg", noise)
    whole = Image.open(path).convert("RGB")
    np.testing.assert_array_equal(load_image(path, 300, 300), load_image(save("a.png", whole), 300, 300))


def test_endings_are_those_that_can_be_opened():
    assert {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"} <= readable_extensions()
    assert ".pdf" not in readable_extensions()  # Pillow writes it, only


def test_floats_have_no_known_range(save):
    save("a.png")
    save("b.tif", np.ones((4, 4), np.float32))
    with pytest.warns(UserWarning, match="b.tif .*range of pixels of mode F"):
        assert len(image_folder(save("a.png").parent, 8).images) == 1


def test_decompression_bombs_are_left_out(save, monkeypatch):
    save("a.png")
    folder = save("bomb.png", np.zeros((40, 40, 3), np.uint8)).parent
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # 1,600 pixels: a warning of Pillow's, not yet its error
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = image_folder(folder, 8)
    assert [path.name for path in dataset.paths] == ["a.png"]
    assert len(caught) == 1
    assert "bomb.png (DecompressionBombWarning" in str(caught[0].message)
