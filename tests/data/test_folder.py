import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest

from unet_keras.data import by_label, image_folder


@pytest.fixture
def eleven(save, tmp_path):
    """Eleven images, dark on the left and light on the right: image i has 10 + i and 110 + i."""
    for i in range(11):
        pixels = np.full((8, 8, 3), 10 + i, np.uint8)
        pixels[:, 4:] += 100
        save(f"{i:02d}.png", pixels)
    return tmp_path


@pytest.fixture
def classes(save, tmp_path):
    """Two images of dogs, three of cats."""
    for i, name in enumerate(["dog/b.png", "cat/a.png", "cat/c.png", "cat/more/d.png", "dog/z.png"]):
        save(name, i)
    return tmp_path


def epoch(dataset):
    """The images of an epoch, in order; moves on to the next."""
    images = np.concatenate([batch[0] for batch in dataset])
    dataset.on_epoch_begin()
    dataset.on_epoch_end()
    return images


def identities(images):
    """Which of the eleven each image is, mirrored or not."""
    return (images[:, 0, [0, -1], 0].min(axis=1) - 10).tolist()


def test_images_come_in_one_array_sorted_by_path(eleven):
    dataset = image_folder(eleven, 8)
    assert (dataset.images.shape, dataset.images.dtype) == ((11, 8, 8, 3), np.uint8)
    assert dataset.paths == sorted(eleven.iterdir())
    assert identities(dataset.images) == list(range(11))
    assert dataset.labels is dataset.class_names is dataset.captions is dataset.conditions is None


def test_a_path_may_be_text_and_a_size_a_pair(eleven):
    assert image_folder(str(eleven), (4, 6)).images.shape == (11, 4, 6, 3)


def test_threads_do_not_change_the_images(eleven):
    np.testing.assert_array_equal(image_folder(eleven, 8, workers=1).images, image_folder(eleven, 8, workers=7).images)


def test_endings_in_any_case_hidden_and_other_files(save, tmp_path):
    for name in ("a.PNG", "b.Jpeg", "sub/deep/c.webp", ".hidden.png", ".git/d.png", "sub/._e.png"):
        save(name)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "f.pdf").write_text("x")
    dataset = image_folder(tmp_path, 8)
    assert [path.relative_to(tmp_path).as_posix() for path in dataset.paths] == ["a.PNG", "b.Jpeg", "sub/deep/c.webp"]


def test_a_hidden_folder_can_be_read_itself(save):
    assert len(image_folder(save(".cache/a.png").parent, 8).images) == 1


# Batches and epochs.


def test_without_shuffle_and_flip_the_images_come_as_they_are(eleven):
    dataset = image_folder(eleven, 8, batch_size=4, shuffle=False, flip=False)
    assert [len(batch) for batch in dataset] == [1, 1, 1]
    assert [batch[0].shape[0] for batch in dataset] == [4, 4, 3]
    for _ in range(2):
        np.testing.assert_array_equal(epoch(dataset), dataset.images)


@pytest.mark.parametrize(("batch_size", "batches"), [(1, 11), (4, 3), (11, 1), (100, 1)])
def test_the_number_of_batches(eleven, batch_size, batches):
    dataset = image_folder(eleven, 8, batch_size=batch_size)
    assert len(dataset) == dataset.num_batches == batches
    assert sum(len(dataset[i][0]) for i in range(batches)) == 11
    with pytest.raises(IndexError):
        dataset[batches]


def test_each_image_comes_once_an_epoch_in_a_new_order(eleven):
    dataset = image_folder(eleven, 8, batch_size=4)
    orders = [identities(epoch(dataset)) for _ in range(4)]
    assert all(sorted(order) == list(range(11)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_flips_are_mirror_images_of_about_half_anew_each_epoch(eleven):
    dataset = image_folder(eleven, 8, shuffle=False)
    patterns = []
    for _ in range(40):
        images = epoch(dataset)
        same, mirrored = (np.all(images == o, axis=(1, 2, 3)) for o in (dataset.images, dataset.images[:, :, ::-1]))
        assert np.all(same != mirrored)
        patterns.append(mirrored)
    assert 0.4 < np.mean(patterns) < 0.6
    assert np.all(np.any(patterns, axis=0))
    assert not np.all(np.any(patterns, axis=0) & np.all(patterns, axis=0))


def test_batches_do_not_share_memory_with_the_images(eleven):
    dataset = image_folder(eleven, 8)
    before = dataset.images.copy()
    for (images,) in dataset:
        images[:] = 0
    np.testing.assert_array_equal(dataset.images, before)


def test_two_datasets_of_one_seed_agree_over_epochs(eleven):
    one, two = (image_folder(eleven, 8, batch_size=3, seed=5) for _ in range(2))
    for _ in range(3):
        np.testing.assert_array_equal(epoch(one), epoch(two))


def test_another_seed_is_another_order(eleven):
    orders = [identities(epoch(image_folder(eleven, 8, seed=seed))) for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_the_order_of_asking_changes_nothing(eleven):
    dataset = image_folder(eleven, 8, batch_size=2, seed=3)
    expected = [batch[0] for batch in dataset]
    with ThreadPoolExecutor(4) as pool:
        for index, batch in zip(
            range(6), reversed(list(pool.map(dataset.__getitem__, reversed(range(6))))), strict=True
        ):
            np.testing.assert_array_equal(batch[0], expected[index])


# Classes and conditions.


def test_classes_are_the_sorted_sub_folders(classes):
    dataset = image_folder(classes, 8)
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.labels.dtype == np.int32
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1]
    assert dataset.images[:, 0, 0, 0].tolist() == [1, 2, 3, 0, 4]


def test_an_image_outside_the_sub_folders_takes_the_classes_away(classes, save):
    save("stray.png")
    dataset = image_folder(classes, 8)
    assert dataset.labels is dataset.class_names is None
    with pytest.raises(ValueError, match=r"stray.png lies in no class sub-folder; put"):
        by_label(dataset)


def test_a_class_of_broken_images_keeps_its_number(classes):
    (classes / "bird").mkdir()
    (classes / "bird/a.png").write_bytes(b"no picture")
    (classes / "empty").mkdir()
    with pytest.warns(UserWarning, match="bird/a.png"):
        dataset = image_folder(classes, 8)
    assert dataset.class_names == ["bird", "cat", "dog"]
    assert dataset.labels.tolist() == [1, 1, 1, 2, 2]


def test_labels_stay_with_their_images(classes):
    dataset = image_folder(classes, 8, batch_size=2, conditions=by_label)
    for _ in range(2):
        seen = {}
        for images, conditions in dataset:
            assert list(conditions) == ["label"]
            assert conditions["label"].dtype == np.int32
            seen.update(zip(images[:, 0, 0, 0].tolist(), conditions["label"].tolist(), strict=True))
        assert seen == {1: 0, 2: 0, 3: 0, 0: 1, 4: 1}
        dataset.on_epoch_begin()
        dataset.on_epoch_end()


def test_conditions_are_asked_for_once_with_the_dataset(classes):
    calls = []

    def conditions(folder):
        calls.append(folder)
        return {"index": keras.ops.arange(5), "name": [path.name for path in folder.paths]}

    dataset = image_folder(classes, 8, batch_size=2, conditions=conditions, shuffle=False)
    batches = [batch[1] for _ in range(2) for batch in dataset]
    assert calls == [dataset]
    assert [batch["index"].tolist() for batch in batches[:3]] == [[0, 1], [2, 3], [4]]
    assert batches[2]["name"].tolist() == ["z.png"]
    assert all(isinstance(values, np.ndarray) for values in dataset.conditions.values())


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"label": np.zeros(4)}, r"'label' has shape \(4,\); its first axis must be the 5 images"),
        ({"label": np.zeros(5), "scale": np.float32(1)}, r"'scale' has shape \(\)"),
        ({}, "return a dict of named arrays"),
        (np.zeros(5), "return a dict of named arrays"),
    ],
)
def test_conditions_that_do_not_fit(classes, returned, message):
    with pytest.raises(ValueError, match=f"conditions: .*{message}"):
        image_folder(classes, 8, conditions=lambda folder: returned)


# What cannot be read.


def test_broken_images_are_named_in_one_warning_at_the_caller(eleven):
    whole = (eleven / "00.png").read_bytes()
    (eleven / "01.png").write_bytes(whole[:60])
    (eleven / "02.jpg").write_bytes(b"no picture")
    (eleven / "03.gif").touch()
    with pytest.warns(UserWarning) as caught:
        dataset = image_folder(eleven, 8)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    message = str(caught[0].message)
    assert "left out 3 and kept 10" in message
    assert all(name in message for name in ("01.png (OSError", "02.jpg (Unidentified", "03.gif (Unidentified"))
    assert identities(dataset.images) == [0, *range(2, 11)]
    assert [path.name for path in dataset.paths] == [f"{i:02d}.png" for i in (0, *range(2, 11))]


def test_the_warning_names_ten_and_counts_all(save, tmp_path):
    save("a.png")
    for i in range(13):
        (tmp_path / f"broken{i:02d}.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="left out 13 and kept 1 .*broken09.png.*; and 3 more$") as caught:
        image_folder(tmp_path, 8)
    assert "broken10.png" not in str(caught[0].message)


def test_warnings_of_the_caller_are_left_as_they_were(eleven):
    filters = list(warnings.filters)
    image_folder(eleven, 8)
    assert warnings.filters == filters


def test_links_out_of_the_folder_are_not_followed(save, tmp_path):
    outside = save("outside/secret.png", 200)
    (outside.parent / "metadata.csv").write_text("file_name,text\na.png,stolen\n")
    inside = save("in/a.png", 1)
    folder = inside.parent
    (folder / "out.png").symlink_to(outside)
    (folder / "metadata.csv").symlink_to(outside.parent / "metadata.csv")
    (folder / "away").symlink_to(outside.parent)
    (folder / "up").symlink_to(folder)
    (folder / "gone.png").symlink_to(folder / "nothing.png")
    (folder / "same.png").symlink_to(inside)
    with pytest.warns(UserWarning) as caught:
        dataset = image_folder(folder, 8)
    assert [path.name for path in dataset.paths] == ["a.png", "same.png"]
    assert dataset.images.max() == 1
    assert dataset.captions is None
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "out.png (a link that leads out of the folder)" in message
    assert "metadata.csv (a link that leads out of the folder)" in message
    assert "away (a link to a folder)" in message
    assert "up (a link to a folder)" in message
    assert "gone.png (not a file)" in message


def test_a_folder_behind_a_link_can_be_read_itself(eleven):
    link = eleven.with_name(eleven.name + "_link")
    link.symlink_to(eleven)
    assert len(image_folder(link, 8).images) == 11


def test_a_sub_folder_that_may_not_be_read_is_named(save, tmp_path, monkeypatch):
    save("a.png")
    locked = save("locked/b.png").parent
    scandir = os.scandir

    def refuse(path):
        if Path(path) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.warns(UserWarning, match=r"left out 1 and kept 1 .*locked \(Permission denied\)"):
        image_folder(tmp_path, 8)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are of Unix")
def test_a_pipe_does_not_hang_the_reader(save, tmp_path):
    save("a.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.warns(UserWarning, match=r"pipe.png \(not a file\)"):
        assert len(image_folder(tmp_path, 8).images) == 1


@pytest.mark.parametrize("size", [0, -1, (8, 0), (8,), (8, 8, 3), 8.0, "8", None])
def test_sizes_that_are_none(eleven, size):
    with pytest.raises(ValueError, match=r"size: received .*give a side or \(height, width\)"):
        image_folder(eleven, size)


@pytest.mark.parametrize("option", ["batch_size", "workers"])
@pytest.mark.parametrize("value", [0, -3, 1.5])
def test_counts_below_one(eleven, option, value):
    with pytest.raises(ValueError, match=f"{option} must be a whole number of 1 or more, got {value}"):
        image_folder(eleven, 8, **{option: value})


@pytest.mark.parametrize(("name", "found"), [("missing", "nothing"), ("00.png", "a file")])
def test_paths_that_are_no_folder(eleven, name, found):
    with pytest.raises(ValueError, match=f"path: there is {found} at .*{name}'; give a folder of images"):
        image_folder(eleven / name, 8)


def test_a_folder_without_images(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="path: no image can be read in .*, found none. Give a folder with .png"):
        image_folder(tmp_path, 8)


def test_a_folder_of_broken_images(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"path: no image can be read in .*left out 1: a.png \(Unidentified"):
        image_folder(tmp_path, 8)


# Keras.


class Loss(keras.layers.Layer):
    """Takes the mean of its input as the loss."""

    def call(self, x):
        self.add_loss(keras.ops.mean(x))
        return x


def mean_model():
    """A model whose output, and loss, is the mean of the pixels; it does not learn."""
    layers = [
        keras.layers.Rescaling(1 / 255),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(1 / 3)),
        Loss(),
    ]
    model = keras.Sequential(layers)
    model.compile(optimizer=keras.optimizers.SGD(0.0))
    return model


@pytest.mark.parametrize("shuffle", [True, False])
def test_fit_sees_each_image_once_an_epoch(eleven, shuffle):
    dataset = image_folder(eleven, 8, batch_size=4, workers=2)
    losses = mean_model().fit(dataset, epochs=3, shuffle=shuffle, verbose=0).history["loss"]
    np.testing.assert_allclose(losses, [dataset.images.mean() / 255] * 3, rtol=1e-4)


def test_fit_runs_with_workers_of_keras(eleven):
    dataset = image_folder(eleven, 8, batch_size=4)
    dataset.workers, dataset.use_multiprocessing = 2, False
    assert np.isfinite(mean_model().fit(dataset, epochs=2, verbose=0).history["loss"]).all()


def test_fit_takes_conditions_by_name(classes):
    image = keras.Input((8, 8, 3))
    logits = keras.layers.Dense(2)(keras.layers.Flatten()(keras.layers.Rescaling(1 / 4)(image)))
    model = keras.Model(image, {"label": logits})
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss={"label": loss}, metrics={"label": ["accuracy"]})
    dataset = image_folder(classes, 8, batch_size=2, conditions=by_label)
    history = model.fit(dataset, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert set(np.round(np.multiply(history["accuracy"], 5), 3)) <= set(range(6))  # whole numbers of five images


def test_predict_takes_images_alone(eleven):
    dataset = image_folder(eleven, 8, batch_size=4, shuffle=False, flip=False)
    predicted = mean_model().predict(dataset, verbose=0)
    np.testing.assert_allclose(predicted[:, 0], dataset.images.mean(axis=(1, 2, 3)) / 255, rtol=1e-4)


def test_paths_can_be_opened(eleven):
    assert all(isinstance(path, Path) and path.is_file() for path in image_folder(eleven, 8).paths)


def test_a_share_is_held_out_in_order_and_not_mirrored(eleven):
    folder = image_folder(eleven, 8, conditions=lambda f: {"number": np.arange(11)}, batch_size=4, seed=2)
    train, held = folder.split(0.25)
    assert (len(train.images), len(held.images), len(train), len(held)) == (8, 3, 2, 1)
    assert sorted(identities(train.images) + identities(held.images)) == list(range(11))
    for part in (train, held):
        assert part.conditions["number"].tolist() == identities(part.images) == sorted(identities(part.images))
        assert [int(path.stem) for path in part.paths] == identities(part.images)
    np.testing.assert_array_equal(epoch(held), held.images)
    np.testing.assert_array_equal(epoch(held), held.images)
    first, second = epoch(train), epoch(train)
    assert sorted(identities(first)) == identities(train.images) and (first != second).any()
    again = image_folder(eleven, 8, seed=2).split(0.25)[1]
    assert identities(again.images) == identities(held.images)
    assert identities(image_folder(eleven, 8, seed=3).split(0.25)[1].images) != identities(held.images)


def test_labels_and_captions_are_divided_as_well(classes):
    (classes / "metadata.csv").write_text("file_name,text\n" + "".join(
        f"{p.relative_to(classes).as_posix()},{p.stem}\n" for p in sorted(classes.rglob("*.png"))
    ))  # fmt: skip
    train, held = image_folder(classes, 8).split(0.4)
    for part in (train, held):
        assert [path.stem for path in part.paths] == part.captions
        assert [part.class_names[i] for i in part.labels] == [path.relative_to(classes).parts[0] for path in part.paths]


@pytest.mark.parametrize("share", [0.0, 0.01, 1.0, 2.0, -0.5])
def test_a_share_that_leaves_one_part_empty_is_refused(eleven, share):
    with pytest.raises(ValueError, match="share: .* of 11 images"):
        image_folder(eleven, 8).split(share)
