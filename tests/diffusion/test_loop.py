"""The one sampling loop: its history, its seeds, and what it never compiles twice."""

from functools import partial

import keras
import numpy as np
import pytest
from keras import ops

from unet_keras import (
    DiffusionModel,
    Row,
    build_unet,
    classifier_free,
    ddim,
    ddpm,
    flow,
    leading,
    linear,
    linspace,
    unclipped,
    velocity,
)
from unet_keras import clean as clean_image
from unet_keras.diffusion import loop
from unet_keras.diffusion.samplers import HISTORY

from .helpers import SHAPE, by_hand, closed_form, network, normal, sampled, spied, trainer, weights

SCHEDULE = linear()
traced = pytest.mark.skipif(keras.backend.backend() == "torch", reason="on torch every step is a Python call")


def eps(x, alpha, sigma):
    return sigma * (x - 0.4 * alpha) / (0.64 * alpha**2 + sigma**2) + 0.3 * alpha * x / (1 + x * x)


def clean(x, point):
    return (x - point.sigma * eps(x, point.alpha, point.sigma)) / point.alpha


# ---- rows -----------------------------------------------------------------------------------------------------------


def made_up(points):
    """Rows that use all of the history, in no meaningful way."""
    rng = np.random.default_rng(0)
    numbers = rng.uniform(-0.3, 0.3, (len(points) - 1, 2, HISTORY))
    return [
        Row(here, tuple(a), tuple(b), 0.1 * (n % 2))
        for n, (here, (a, b)) in enumerate(zip(points[:-1], numbers, strict=True))
    ]


def test_loop_keeps_the_history():
    rows = made_up(SCHEDULE.points(np.arange(700, 20, -70)))
    x, z = normal(4, 2, 2, 3), normal(len(rows), 4, 2, 2, 3, seed=1)
    np.testing.assert_allclose(sampled(rows, eps, SCHEDULE, x, z), by_hand(rows, x, z, clean), atol=1e-5)


@pytest.mark.parametrize("length", range(1, HISTORY + 1))
def test_rows_may_be_of_any_length_up_to_the_history(length):
    rows = [row._replace(a=row.a[:length], b=row.b[: HISTORY + 1 - length]) for row in made_up(SCHEDULE.points([9, 5]))]
    x, z = normal(1, 2, 2, 3), normal(2, 1, 2, 2, 3, seed=1)
    np.testing.assert_allclose(sampled(rows, eps, SCHEDULE, x, z), by_hand(rows, x, z, clean), atol=1e-5)


def test_frames_show_each_state_and_estimate():
    rows = ddim(SCHEDULE.points([900, 500, 100]))
    step = loop.make_step(trainer(ema=None).network, trainer().prediction, classifier_free, unclipped)
    frames = list(loop.run(step, rows, normal(2, *SHAPE), lambda n: None))
    assert len(frames) == 3 and tuple(frames[0].states.shape) == (HISTORY, 2, *SHAPE)
    for before, after in zip(frames, frames[1:], strict=False):
        np.testing.assert_array_equal(ops.convert_to_numpy(after.states[1]), ops.convert_to_numpy(before.x))
        np.testing.assert_array_equal(ops.convert_to_numpy(after.estimates[1]), ops.convert_to_numpy(before.clean))
    np.testing.assert_array_equal(ops.convert_to_numpy(frames[-1].x), ops.convert_to_numpy(frames[-1].clean))


@pytest.mark.parametrize(
    "row, message",
    [
        (Row(SCHEDULE.at(5), (1,) * 5, (1,)), "may use 4 states and estimates, got 5 and 1"),
        (Row(SCHEDULE.at(5), (1,), (1,) * 5), "may use 4 states and estimates, got 1 and 5"),
        (Row(SCHEDULE.at(5), (float("nan"),), (1,)), "row at timestep 5 is not finite"),
        (Row(SCHEDULE.at(5), (1,), (1,), float("inf")), "row at timestep 5 is not finite"),
    ],
)
def test_loop_refuses_rows_before_the_first_call(row, message):
    with pytest.raises(ValueError, match=message):
        trainer().generate(1, steps=2, sampler=lambda points: [*ddim(points), row])


# ---- compiling ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's programs alone hold weights")
def test_weights_are_written_into_a_program_until_they_change(monkeypatch):
    def made(compiled):
        model = trainer(ema=None)
        return model if compiled else DiffusionModel(model.network, ema=None)

    def written(model):
        return [isinstance(step, loop.Written) for step in model._steps.values()]

    options = {"steps": 3, "seed": 0, "progress": False}
    model, compiled = made(False), made(True)
    before = model.generate(2, **options)
    np.testing.assert_array_equal(compiled.generate(2, **options), before)
    assert written(model) == [True] and written(compiled) == [False]
    for change, kept in ((0.5, False), (-0.5, False)):  # what has changed before will change again
        for one in (model, compiled):
            one.network.layers[-1].bias.assign_add(np.full(3, change, "float32"))
        after = model.generate(2, **options)
        assert written(model) == [kept] and (after != before).any()
        np.testing.assert_array_equal(after, compiled.generate(2, **options))
        before = after
    monkeypatch.setattr(loop, "WRITTEN", 0)
    large = made(False)
    large.generate(2, **options)
    assert written(large) == [False]


CHANGES = {
    "steps": {"steps": 5},
    "seed": {"seed": 2},
    "sampler": {"sampler": ddpm},
    "sampler of ones own": {"sampler": made_up},
    "spacing": {"spacing": leading},
    "guidance": {"guidance": 7.5},
    "noise": {"noise": normal(4, 3, *SHAPE)},
}


@pytest.fixture(scope="module")
def watched():
    """A model that counts how often Python runs its network, traced once with three images."""
    net, spy = spied(3)
    model = DiffusionModel(net, null={"label": 2}, drop=0.1, ema=None)
    model.generate([0, 1, 0], steps=3, guidance=2.0, progress=False)
    return model, spy


@traced
@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX compiles for each shape")
def test_a_third_batch_size_is_not_compiled_again():
    net, spy = spied()
    model = DiffusionModel(net, ema=None)
    for count in (2, 3):
        model.generate(count, steps=1, progress=False)
    spy.seen.clear()
    model.generate(5, steps=1, progress=False)
    assert spy.seen == []


@traced
@pytest.mark.parametrize("change", CHANGES)
def test_nothing_is_compiled_again_for_other(watched, change):
    model, spy = watched
    spy.seen.clear()
    model.generate([1, 1, 0], **{"steps": 3, "guidance": 2.0, "progress": False, **CHANGES[change]})
    assert spy.seen == []


@traced
def test_weights_are_seen_without_compiling(watched):
    """But for the first change, where they were written into the program."""
    model, spy = watched
    options = {"steps": 3, "guidance": 2.0, "seed": 0, "progress": False}
    kept, pictures, compiled = model.network.get_weights(), [], []
    for sign in (1, -1, 1):
        model.network.set_weights([sign * w for w in kept])
        spy.seen.clear()
        pictures.append(model.generate([0, 1, 0], **options))
        compiled.append(len(spy.seen))
    first, other, again = pictures
    assert (first != other).any() and (first == again).all()
    assert compiled == [0, int(keras.backend.backend() == "tensorflow"), 0]


@traced
def test_another_batch_size_is_compiled_again(watched):
    model, spy = watched
    spy.seen.clear()
    model.generate([0, 1, 0, 0, 1], steps=1, guidance=2.0, progress=False)
    assert len(spy.seen) >= 1


def test_weights_changed_by_training_are_seen():
    model, options = trainer(), {"steps": 2, "seed": 0, "progress": False}
    before = model.generate(2, **options)
    model.fit(normal(4, *SHAPE).clip(-1, 1), epochs=3, verbose=0)
    after = model.generate(2, **options)
    assert (after != before).any()
    np.testing.assert_array_equal(model.generate(2, **options), after)


# ---- seeds ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return DiffusionModel(build_unet(SHAPE, (4, 8)), ema=None, seed=0)


@pytest.mark.parametrize("sampler", [ddim, ddpm])
def test_same_seed_same_images(model, sampler):
    options = {"steps": 4, "sampler": sampler, "progress": False}
    first, again, other = (model.generate(2, seed=seed, **options) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.3 and (first[0] != first[1]).mean() > 0.3
    assert first.dtype == np.uint8 and first.shape == (2, *SHAPE)


def test_images_differ_unless_a_seed_is_given(model):
    keras.utils.set_random_seed(0)
    assert (model.generate(1, steps=1, progress=False) != model.generate(1, steps=1, progress=False)).any()


@pytest.mark.parametrize("sampler", [ddim, ddpm])
def test_images_of_a_seed_do_not_depend_on_the_batch(model, sampler):
    options = {"steps": 4, "sampler": sampler, "seed": 1, "progress": False}
    together = model.generate(5, **options).astype(int)
    for size in (1, 2, 5, 9):
        assert np.abs(model.generate(5, batch_size=size, **options) - together).max() <= 1  # a rounding
    assert np.abs(model.generate(3, **options) - together[:3]).max() <= 1


def test_conditions_follow_their_images_through_batches():
    model = DiffusionModel(network(4), ema=None)
    labels, options = [0, 1, 2, 1, 0], {"steps": 2, "seed": 1, "progress": False}
    together = model.generate(labels, **options).astype(int)
    assert np.abs(model.generate(labels, batch_size=2, **options) - together).max() <= 1


@pytest.mark.parametrize("sampler", [ddim, ddpm])
def test_noise_can_be_given(sampler):
    given = normal(5, 2, *SHAPE)
    model = trainer(ema=None)
    net = model.network

    def clean(x, point):
        t = np.full(2, point.timestep, "float32")
        said = net({"image": ops.convert_to_tensor(x, "float32"), "timestep": ops.convert_to_tensor(t)})
        return (x - point.sigma * ops.convert_to_numpy(said)) / point.alpha

    options = {"steps": 4, "sampler": sampler, "spacing": linspace, "noise": given, "threshold": unclipped}
    *_, frame = model.denoising(2, **options)
    points = SCHEDULE.points(linspace(1000, 4))
    expected = by_hand(sampler(points), given[0], given[1:], clean)
    np.testing.assert_allclose(ops.convert_to_numpy(frame.x), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("schedule, size", [(SCHEDULE, 1.0), (flow(), np.hypot(0.1, 0.9))])
def test_sampling_begins_with_noise_of_the_schedules_size(schedule, size):
    """1 where alpha^2 + sigma^2 = 1; the sampler here is one row that changes nothing."""
    model = trainer(schedule=schedule, prediction=velocity, ema=None)
    options = {"spacing": lambda total, steps: [899], "sampler": lambda points: [Row(points[0], (1.0,), (0.0,))]}
    (frame,) = model.denoising(200, steps=1, seed=0, **options)
    x = ops.convert_to_numpy(frame.x)
    assert abs(x.std() - size) < 5 / np.sqrt(2 * x.size) and abs(x.mean()) < 5 / np.sqrt(x.size)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_given_noise_goes_with_its_images(batch_size):
    options = {"steps": 4, "sampler": ddpm, "noise": normal(5, 3, *SHAPE), "progress": False}
    model = trainer(ema=None)
    together = model.generate(3, **options).astype(int)
    assert np.abs(model.generate(3, batch_size=batch_size, **options) - together).max() <= 1


def test_images_are_rounded_and_cut_to_bytes():
    said = np.array([-1.5, -1, -0.9999, 0.0001, 0.499, 1, 3], "float32")
    net = closed_form(lambda x, alpha, sigma: 0 * x + ops.convert_to_tensor(said)[:, None], SCHEDULE, (1, 7, 1))
    model = DiffusionModel(net, prediction=clean_image, ema=None)
    images = model.generate(2, steps=1, threshold=unclipped, progress=False)
    assert images[:, 0, :, 0].tolist() == [[0, 0, 0, 128, 191, 255, 255]] * 2


def test_sampling_does_not_touch_the_model():
    model = trainer()
    before, state = weights(model), [ops.convert_to_numpy(v).copy() for v in model.variables]
    model.generate(2, steps=2, progress=False)
    assert all((a == b).all() for a, b in zip(weights(model), before, strict=True))
    assert all((ops.convert_to_numpy(v) == old).all() for v, old in zip(model.variables, state, strict=True))


def test_progress_is_shown_of_every_step(capsys, monkeypatch, model):
    model.generate(1, steps=2, seed=0)
    assert capsys.readouterr().out == ""  # it is over before a bar is of use
    monkeypatch.setattr(loop, "progress_bar", partial(loop.progress_bar, patience=0.0))
    model.generate(3, steps=4, batch_size=2, seed=0)
    shown = capsys.readouterr().out
    assert "1/8" in shown and "8/8" in shown and shown.endswith("\n")
    model.generate(3, steps=4, seed=0, progress=False)
    assert capsys.readouterr().out == ""
