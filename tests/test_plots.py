import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageFont

from unet_keras import plots


def random_images(count, height=8, width=8, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def enlarged(image, scale):
    return np.kron(image, np.ones((scale, scale, 1), np.uint8))


def cell(sheet, row, column, size, padding=2, below=0):
    """Return the pixels of one cell; size (height, width) is the enlarged image's, below what lies under it."""
    top = padding + row * (size[0] + below + padding)
    left = padding + column * (size[1] + padding)
    return np.asarray(sheet)[top : top + size[0], left : left + size[1]]


# grid


def test_grid_holds_every_image_enlarged_and_is_white_elsewhere():
    images = random_images(5)
    sheet = plots.grid(images, scale=3, padding=4)
    assert sheet.mode == "RGB" and sheet.size == (3 * 24 + 4 * 4, 2 * 24 + 3 * 4)  # near-square: 3 columns, 2 rows
    rest = np.array(sheet)
    for index, image in enumerate(images):
        row, column = divmod(index, 3)
        np.testing.assert_array_equal(cell(sheet, row, column, (24, 24), 4), enlarged(image, 3))
        rest[4 + row * 28 : 28 + row * 28, 4 + column * 28 : 28 + column * 28] = 255
    assert (rest == 255).all()


def test_grid_of_images_that_are_not_square():
    images = random_images(4, height=5, width=9)
    sheet = plots.grid(images, scale=2, padding=1)
    assert sheet.size == (2 * 18 + 3, 2 * 10 + 3)
    np.testing.assert_array_equal(cell(sheet, 1, 0, (10, 18), 1), enlarged(images[2], 2))


def test_grid_shows_floats_as_the_uint8_they_came_from():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    for dtype in (np.float64, np.float32, np.float16):
        floats = (images / 127.5 - 1).astype(dtype)
        np.testing.assert_array_equal(np.asarray(plots.grid(floats)), np.asarray(plots.grid(images)))


def test_grid_shows_one_channel_as_grey():
    images = random_images(1, channels=1)
    np.testing.assert_array_equal(np.asarray(plots.grid(images, scale=1, padding=0)), images[0].repeat(3, -1))


@pytest.mark.parametrize(
    "count, columns, expected",
    [(1, None, (1, 1)), (2, None, (2, 1)), (9, None, (3, 3)), (9, 2, (2, 5)), (9, 9, (9, 1)), (3, 8, (3, 1))],
)
def test_grid_is_near_square_or_has_the_columns_it_can_fill(count, columns, expected):
    sheet = plots.grid(random_images(count), scale=1, padding=0, columns=columns)
    assert sheet.size == (8 * expected[0], 8 * expected[1])


@pytest.mark.parametrize("side, expected", [(8, 64), (28, 84), (32, 64), (48, 96), (63, 126), (64, 64), (100, 100)])
def test_grid_enlarges_small_images_to_64_pixels_by_whole_factors(side, expected):
    assert plots.grid(random_images(1, side, side), padding=0).size == (expected, expected)


def test_grid_saves_and_makes_the_folders(tmp_path):
    path = tmp_path / "some" / "folder" / "grid.png"
    sheet = plots.grid(random_images(2), path=path)
    with Image.open(path) as saved:
        np.testing.assert_array_equal(np.asarray(saved), np.asarray(sheet))


GOOD = random_images(2)


@pytest.mark.parametrize(
    "images, message",
    [
        (GOOD[0], "shape"),
        (GOOD[None], "shape"),
        (GOOD[..., :2], "shape"),
        (GOOD[:0], "shape"),
        (GOOD[:, :0], "shape"),
        (GOOD.astype(int), "int64"),
        (GOOD > 9, "bool"),
        (GOOD.astype(np.float32), r"\[-1, 1\]"),
        (np.full((1, 4, 4, 3), -1.01), "-1.01"),
        (np.full((1, 4, 4, 3), np.inf), "inf"),
        (np.full((1, 4, 4, 3), np.nan), "NaN"),
    ],
)
def test_grid_refuses_what_is_not_images(images, message):
    with pytest.raises(ValueError, match=f"images.*{message}"):
        plots.grid(images)


@pytest.mark.parametrize(
    "options",
    [
        {"columns": 0},
        {"columns": 2.5},
        {"scale": 0},
        {"scale": 1.5},
        {"padding": -1},
        {"padding": 0.5},
        {"captions": ["one"]},
        {"captions": ["one"] * 3},
    ],
)
def test_grid_refuses_options_that_make_no_grid(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        plots.grid(GOOD, **options)


# captions


def test_captions_change_only_what_lies_below_the_images():
    images = random_images(4)
    sheet = plots.grid(images, scale=12, captions=["a dog", "a cat", "", "a rather long caption of a bird"])
    below = (sheet.height - 2 * 96 - 3 * 2) // 2
    assert sheet.width == 2 * 96 + 3 * 2 and below > 0
    pixels = np.array(sheet)
    for index, image in enumerate(images):
        row, column = divmod(index, 2)
        np.testing.assert_array_equal(cell(sheet, row, column, (96, 96), below=below), enlarged(image, 12))
        top, left = 2 + 96 + row * (96 + below + 2), 2 + column * 98
        written = pixels[top : top + below, left : left + 96]
        assert (written < 128).any() == (index != 2)  # the empty caption is the third
        written[:] = pixels[top - 96 : top, left : left + 96] = 255
    assert (pixels == 255).all()


def test_captions_get_room_and_the_rows_stay_even():
    short, long = (plots.grid(GOOD, columns=1, captions=["dog", text]) for text in ("cat", "a face with smiling eyes"))
    assert short.width == long.width == 96 + 4
    assert short.height < long.height
    assert (long.height - 3 * 2) % 2 == 0  # both rows as high as the longer caption needs
    line = (long.height - short.height) // 2
    ends = [np.asarray(long)[end - line - line // 2 : end] for end in (long.height // 2, long.height)]
    assert [(end < 128).any() for end in ends] == [False, True]  # the second line, and half a line of white
    assert (ends[1][-line // 2 :] == 255).all()


def test_captions_are_larger_under_larger_images():
    small, large = (np.asarray(plots.grid(GOOD[:1], captions=["dog"], scale=scale)) for scale in (12, 30))
    heights = [(sheet[sheet.shape[1] :] < 128).any(axis=(1, 2)).sum() for sheet in (small, large)]
    assert 0 < heights[0] < heights[1]


def test_captions_keep_clear_of_the_cell_sides():
    sheet = plots.grid(GOOD, scale=12, padding=0, captions=["wwww " * 30, "w" * 200])
    ink = (np.asarray(sheet)[96:] < 255).any(axis=(0, 2))
    assert ink[:192].any() and not ink[[0, 1, 94, 95, 96, 97, 190, 191]].any()


@pytest.mark.parametrize(
    "text, width, expected",
    [
        ("", 9, [""]),
        ("dog", 3, ["dog"]),
        ("a face with smiling eyes", 12, ["a face with", "smiling eyes"]),
        ("a face with eyes", 11, ["a face with", "eyes"]),
        ("a face with eyes", 10, ["a face", "with eyes"]),
        ("a face with smiling eyes and open hands", 12, ["a face with", "smiling eye…"]),
        ("donaudampfschifffahrt", 11, ["donaudampfs", "chifffahrt"]),
    ],
)
def test_captions_break_at_spaces_and_end_in_an_ellipsis(text, width, expected):
    font = SimpleNamespace(getlength=len)  # a font whose letters are 1 wide
    assert plots._wrap(text, font, width) == expected


@pytest.mark.parametrize("width", [0, 1, 5, 20, 60, 200])
def test_captions_fit_any_width(width):
    font = ImageFont.load_default(size=12)
    lines = plots._wrap("extraordinarily long captions of several words", font, width)
    assert 1 <= len(lines) <= 2 and all(font.getlength(line) <= width for line in lines)


def test_captions_lose_accents_and_line_breaks():
    assert plots._plain("São\n  Tomé") == "Sao Tome"
    written = [plots.grid(GOOD[:1], captions=[text]) for text in ("São\nTomé", "Sao Tome")]
    assert written[0].tobytes() == written[1].tobytes()


# denoising


def gradual_frames(count, images=2):
    """Return frames whose every pixel is the frame's index, from -count to -1, over count."""
    return [np.full((images, 8, 8, 3), index / count - 1, np.float32) for index in range(count)]


def shown(strip, columns, rows):
    return np.array([[cell(strip, row, column, (64, 64))[0, 0, 0] for column in range(columns)] for row in range(rows)])


@pytest.mark.parametrize("total, count, chosen", [(51, 6, range(0, 51, 10)), (10, 4, [0, 3, 6, 9]), (50, 2, [0, 49])])
def test_strip_takes_frames_evenly_with_the_first_and_the_last(total, count, chosen):
    strip = plots.denoising(gradual_frames(total), count=count)
    assert strip.size == (count * 66 + 2, 2 * 66 + 2)
    expected = np.round(127.5 * np.array(chosen, np.float32) / total)
    np.testing.assert_allclose(shown(strip, count, 2), [expected, expected], atol=1)


@pytest.mark.parametrize("total", [1, 2, 7])
def test_strip_of_few_frames_shows_them_all(total):
    assert plots.denoising(iter(gradual_frames(total))).size == (total * 66 + 2, 2 * 66 + 2)


def test_strip_has_a_row_an_image():
    frames = [random_images(3, seed=seed) for seed in range(2)]
    strip = plots.denoising(frames)
    for row in range(3):
        for column in range(2):
            np.testing.assert_array_equal(cell(strip, row, column, (64, 64)), enlarged(frames[column][row], 8))


def test_strip_clips_noise_and_saves(tmp_path):
    noise = np.array([-7.0, 7.0]).reshape(2, 1, 1, 1) * np.ones((2, 8, 8, 1))
    strip = plots.denoising([noise, noise / 7], path=tmp_path / "new" / "strip.png")
    np.testing.assert_array_equal(shown(strip, 2, 2), [[0, 0], [255, 255]])
    with Image.open(tmp_path / "new" / "strip.png") as saved:
        assert saved.size == strip.size


@pytest.mark.parametrize(
    "frames, message",
    [
        ([], "no frames"),
        ([GOOD, GOOD[:1]], "one shape"),
        ([GOOD, GOOD[0]], r"frames\[1\].*shape"),
        ([GOOD, np.full((2, 8, 8, 3), np.nan)], r"frames\[1\].*NaN"),
    ],
)
def test_strip_and_animation_refuse_what_is_not_frames(frames, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        plots.denoising(frames)
    with pytest.raises(ValueError, match=message):
        plots.animation(frames, tmp_path / "never.gif")


def test_strip_refuses_to_leave_out_the_first_or_the_last_frame():
    for count in (1, 2.5):
        with pytest.raises(ValueError, match="count"):
            plots.denoising(gradual_frames(3), count=count)


# animation


def played(path):
    """Return the frames of a GIF as arrays, their durations and the number of repeats, 0 for ever."""
    frames, durations = [], []
    with Image.open(path) as gif:
        for index in range(gif.n_frames):
            gif.seek(index)
            frames.append(np.asarray(gif.convert("RGB")))
            durations.append(gif.info["duration"])
        return frames, durations, gif.info["loop"]


def test_animation_plays_every_frame_and_holds_the_last(tmp_path):
    images = gradual_frames(5, images=4)
    path = plots.animation(iter(images), tmp_path / "new" / "way.gif", milliseconds=50, hold=900)
    assert path == tmp_path / "new" / "way.gif"
    frames, durations, loop = played(path)
    assert durations == [50, 50, 50, 50, 900] and loop == 0
    for frame, image in zip(frames, images, strict=True):
        np.testing.assert_array_equal(frame, np.asarray(plots.grid(image)))


def test_animation_of_one_frame_and_of_equal_frames(tmp_path):
    assert played(plots.animation([GOOD], tmp_path / "one.gif"))[1] == [1500]
    assert played(plots.animation([GOOD] * 3, str(tmp_path / "same.gif")))[1] == [60 + 60 + 1500]


@pytest.mark.parametrize("options", [{"milliseconds": 10}, {"hold": 0}])
def test_animation_refuses_durations_that_no_viewer_keeps(options, tmp_path):
    with pytest.raises(ValueError, match=next(iter(options))):
        plots.animation([GOOD], tmp_path / "never.gif", **options)


# curves


def flow_schedule(steps):
    """Return a schedule that ends in pure noise: alpha is 0 at the last step."""
    time = np.arange(1, steps + 1) / steps
    return SimpleNamespace(alpha=1 - time, sigma=time)


def test_schedule_draws_factors_and_the_ratio_in_decibels():
    given = {"flow": flow_schedule(4), "longer": flow_schedule(10)}
    left, right = plots.schedule(given).axes
    for index, noise in enumerate(given.values()):
        np.testing.assert_array_equal(left.lines[2 * index].get_ydata(), noise.alpha)
        np.testing.assert_array_equal(left.lines[2 * index + 1].get_ydata(), noise.sigma)
        ratio = right.lines[index].get_ydata()
        np.testing.assert_allclose(ratio[:-1], 10 * np.log10(noise.alpha[:-1] ** 2 / noise.sigma[:-1] ** 2))
        assert np.ma.getmaskarray(ratio).tolist() == [False] * (len(noise.alpha) - 1) + [True]
        assert left.lines[2 * index].get_color() == right.lines[index].get_color()
    assert right.lines[0].get_color() != right.lines[1].get_color()


def test_schedule_leaves_out_what_is_zero_but_for_rounding():
    noise = SimpleNamespace(alpha=np.array([1.0, 0.5, 6e-17]), sigma=np.array([0.0, 0.5, 1.0]))
    ratio = plots.schedule({"cosine": noise}).axes[1].lines[0].get_ydata()
    assert ratio.mask.tolist() == [True, False, True] and ratio[1] == 0


def test_schedule_labels_its_axes_and_curves():
    figure = plots.schedule({"flow": flow_schedule(4), "longer": flow_schedule(10)})
    left, right = figure.axes
    assert left.get_xlabel() == right.get_xlabel() == "timestep (index)"
    assert "dimensionless" in left.get_ylabel() and "dB" in right.get_ylabel()
    assert [text.get_text() for text in figure.legends[0].texts] == ["alpha: image", "sigma: noise", "flow", "longer"]


def test_loss_draws_training_and_validation_over_epochs_from_one():
    history = {"loss": [0.5, 0.2, 0.1], "val_loss": [0.6, 0.3, 0.2], "learning_rate": [1e-4] * 3}
    figure = plots.loss(history)
    (axes,) = figure.axes
    training, validation = axes.lines
    np.testing.assert_array_equal(training.get_xydata(), [[1, 0.5], [2, 0.2], [3, 0.1]])
    np.testing.assert_array_equal(validation.get_xydata(), [[1, 0.6], [2, 0.3], [3, 0.2]])
    assert (training.get_linestyle(), validation.get_linestyle()) == ("-", "--")
    assert training.get_color() == validation.get_color()
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("epoch", "loss", "log")
    assert [text.get_text() for text in figure.legends[0].texts] == ["loss", "val_loss"]


def test_loss_gives_each_run_its_colour():
    lines = plots.loss({"one": [1.0], "val_one": [2.0], "two": [3.0]}).axes[0].lines
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()


def test_loss_of_one_epoch_is_a_point_over_a_whole_number():
    (axes,) = plots.loss({"loss": [0.5]}).axes
    assert axes.lines[0].get_marker() == "o" and axes.get_xlim() == (0.5, 1.5)
    assert [tick for tick in axes.get_xticks() if 0.5 <= tick <= 1.5] == [1]
    assert plots.loss({"loss": [0.5] * 100}).axes[0].lines[0].get_marker() == "None"


@pytest.mark.parametrize("epochs, every, expected", [(6, 2, [2, 4, 6]), (7, 3, [3, 6]), (1, 1, [1]), (1, 2, [])])
def test_loss_places_validation_at_the_epochs_it_ran(epochs, every, expected):
    history = {"loss": [0.5] * epochs, "val_loss": [0.5] * (epochs // every)}
    assert plots.loss(history).axes[0].lines[1].get_xdata().tolist() == expected


@pytest.mark.parametrize(
    "values, scale",
    [
        ([0.1], "log"),
        ([0.2, np.nan, np.inf, 0.1], "log"),
        ([0.1, 0.0], "linear"),
        ([0.1, -0.1], "linear"),
        ([np.nan], "linear"),
    ],
)
def test_loss_is_logarithmic_where_it_can_be(values, scale, tmp_path):
    assert plots.loss({"loss": values}, path=tmp_path / "loss.png").axes[0].get_yscale() == scale


@pytest.mark.parametrize("history", [{}, {"loss": []}, {"learning_rate": [0.1]}])
def test_loss_refuses_an_empty_history(history):
    with pytest.raises(ValueError, match="history"):
        plots.loss(history)


def test_schedule_refuses_none():
    with pytest.raises(ValueError, match="schedules"):
        plots.schedule({})


ROWS = [
    SimpleNamespace(point=(999.0, 0.0, 1.0), a=(0.9,), b=(0.1,), c=0.0),
    SimpleNamespace(point=(500.0, 0.6, 0.8), a=(0.0, 0.7), b=(0.2, -0.1), c=0.3),
    SimpleNamespace(point=(0.0, 0.8, 0.6), a=(0.0,), b=(1.0,), c=0.0),
]


def test_sampler_draws_where_the_network_is_called_and_the_coefficients():
    left, right = plots.sampler(ROWS).axes
    np.testing.assert_allclose(left.lines[0].get_ydata(), [np.nan, 0.8 / 0.6, 0.6 / 0.8])
    assert left.get_yscale() == "log"
    drawn = {line.get_label(): list(line.get_ydata()) for line in right.lines}
    assert drawn == {
        "a: x": [0.9, 0, 0],
        "a: x, 1 back": [0, 0.7, 0],
        "b: D": [0.1, 0.2, 1],
        "b: D, 1 back": [0, -0.1, 0],
        "c: noise": [0, 0.3, 0],
    }
    colours = [line.get_color() for line in right.lines]
    assert colours[0] == colours[2] != colours[1] == colours[3]


def test_sampler_leaves_out_coefficients_that_are_zero_throughout():
    labels = [line.get_label() for line in plots.sampler(ROWS[2:]).axes[1].lines]
    assert labels == ["b: D", "c: noise"]


def test_sampler_labels_its_axes():
    left, right = plots.sampler(ROWS).axes
    assert left.get_xlabel() == right.get_xlabel() == "row (network call)"
    assert left.get_ylabel().startswith("sigma / alpha") and right.get_ylabel().startswith("coefficient")


def test_sampler_refuses_none():
    with pytest.raises(ValueError, match="rows: got none"):
        plots.sampler([])


CURVES = [
    (plots.sampler, ROWS),
    (plots.schedule, {"flow": flow_schedule(5)}),
    (plots.loss, {"loss": [0.2, 0.1], "val_loss": [0.3]}),
]


@pytest.mark.parametrize("plot, data", CURVES)
def test_curves_are_saved_whole_and_shown_by_notebooks(plot, data, tmp_path):
    path = tmp_path / "new" / "curves.png"
    figure = plot(data, path=path)
    with Image.open(path) as saved:
        pixels = np.asarray(saved.convert("RGB"))
    assert pixels.shape[:2] == (432, 120 * figure.get_size_inches()[0])
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (edge == 255).all() and (pixels < 255).any()  # nothing is cut at the edge
    assert figure._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("plot, data", CURVES)
def test_curves_without_matplotlib_name_the_extra(plot, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "unet-keras\[plot\]"'):
        plot(data)


def test_pictures_need_no_matplotlib_and_curves_no_pyplot(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    for plot, data in CURVES:
        plot(data)
    assert "matplotlib.pyplot" not in sys.modules
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    plots.grid(GOOD, captions=["a", "b"])
    plots.denoising([GOOD, GOOD])
    plots.animation([GOOD], tmp_path / "way.gif")


# attention


def test_attention_shows_the_image_and_a_copy_for_each_word():
    image = random_images(1)[0]
    maps = np.zeros((8, 8, 3), "float32")
    maps[2, 3, 1], maps[..., 2] = 1.0, 0.5
    sheet = plots.attention(image, ["", "red", "heart"], maps, scale=20)
    below = sheet.height - 2 * 2 - 160
    np.testing.assert_array_equal(cell(sheet, 0, 0, (160, 160), below=below), enlarged(image, 20))
    looked = cell(sheet, 0, 1, (160, 160), below=below)[::20, ::20].astype(int)
    assert sheet.width == 3 * 160 + 4 * 2
    assert looked[2, 3].tolist() == [220, 30, 30]
    elsewhere = np.delete(looked.reshape(-1, 3), 2 * 8 + 3, axis=0)
    assert (np.ptp(elsewhere, axis=1) == 0).all() and elsewhere.std() > 5
    same = cell(sheet, 0, 2, (160, 160), below=below)[::20, ::20]
    assert (np.ptp(same, axis=-1) == 0).all()  # a word looked at everywhere alike is red nowhere


@pytest.mark.parametrize("maps", [np.zeros((8, 8, 2)), np.zeros((8, 7, 3)), np.full((8, 8, 3), np.nan)])
def test_attention_refuses_maps_that_do_not_fit(maps):
    with pytest.raises(ValueError, match=r"maps: expected finite numbers \(H, W, words\) = \(8, 8, 3\)"):
        plots.attention(random_images(1)[0], ["a", "b", "c"], maps)
