"""Every kind of data that fit takes trains the same model as the arrays it is made of."""

from functools import cache

import keras
import numpy as np
import pytest
from PIL import Image

from .helpers import SHAPE, pixels, rewinder, standing, trainer, weights

IMAGES = pixels(8)
SCALED = IMAGES.astype("float32") / 127.5 - 1
LABELS = np.arange(8, dtype="int32") % 3
WEIGHT = np.array([0, 1, 2, 0, 5, 0.5, 0, 1], "float32")


class Batches(keras.utils.PyDataset):
    """Batches of four, each made by ``build`` of slices of the arrays."""

    def __init__(self, build, *arrays, **options):
        super().__init__(**options)
        self.build, self.arrays = build, arrays

    def __len__(self):
        return len(self.arrays[0]) // 4

    def __getitem__(self, index):
        return self.build(*(array[4 * index : 4 * index + 4] for array in self.arrays))


def as_tuple(*arrays):
    return arrays


def bare(images):
    return images


def named(images, labels, *weight):
    return (images, {"label": labels}, *weight)


def one_dictionary(images, labels):
    return ({"image": images, "label": labels},)


def arrays(build, *given):
    built = build(*given)
    x, y, weight = keras.utils.unpack_x_y_sample_weight(built if isinstance(built, tuple) else (built,))
    return {"x": x, "y": y, "sample_weight": weight, "batch_size": 4, "shuffle": False}


def tf_dataset(build, *given):
    tf = pytest.importorskip("tensorflow")
    return {"x": tf.data.Dataset.from_tensor_slices(build(*given)).batch(4)}


def py_dataset(build, *given):
    return {"x": Batches(build, *given), "shuffle": False}


def threaded(build, *given):
    return {"x": Batches(build, *given, workers=2), "shuffle": False}


def torch_loader(build, *given):
    torch = pytest.importorskip("torch")

    def collate(rows):
        return build(*(torch.tensor(np.stack(column)) for column in zip(*rows, strict=True)))

    return {"x": torch.utils.data.DataLoader(list(zip(*given, strict=True)), batch_size=4, collate_fn=collate)}


def generator(build, *given):
    def endless():
        while True:
            yield from (Batches(build, *given)[i] for i in range(2))

    return {"x": endless(), "steps_per_epoch": 2}


KINDS = [arrays, tf_dataset, py_dataset, threaded, torch_loader, generator]
kinds = pytest.mark.parametrize("kind", KINDS)


@cache
def fresh(classes):
    return rewinder(trainer(classes))


def trained(classes, data, **options):
    """The weights, their average and the losses after two epochs, always from the same start."""
    model = fresh(classes)()
    history = model.fit(**data, epochs=2, verbose=0, **options).history
    return *weights(model), history["loss"]


@cache
def trained_on_arrays(classes):
    return trained(classes, arrays(as_tuple, *([IMAGES, LABELS] if classes else [IMAGES])))


def check(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("images", [IMAGES, SCALED, SCALED.astype("float64")], ids=["uint8", "float32", "float64"])
@kinds
def test_images_alone(kind, images):
    check(trained(None, kind(as_tuple, images)), trained_on_arrays(None))


@kinds
def test_bare_images(kind):
    check(trained(None, kind(bare, IMAGES)), trained_on_arrays(None))


@pytest.mark.parametrize("build", [as_tuple, named, one_dictionary])
@kinds
def test_images_and_conditions(kind, build):
    check(trained(4, kind(build, IMAGES, LABELS)), trained_on_arrays(4))


@pytest.mark.parametrize("build", [as_tuple, named])
@kinds
def test_images_conditions_and_weights(kind, build):
    check(trained(4, kind(build, IMAGES, LABELS, WEIGHT)), trained(4, arrays(as_tuple, IMAGES, LABELS, WEIGHT)))


def test_lists_of_torch_tensors():
    torch = pytest.importorskip("torch")
    for classes, given in ((None, (IMAGES,)), (4, (IMAGES, LABELS))):
        tensors = torch.utils.data.TensorDataset(*map(torch.tensor, given))
        loader = torch.utils.data.DataLoader(tensors, batch_size=4)
        assert isinstance(next(iter(loader)), list)
        check(trained(classes, {"x": loader}), trained_on_arrays(classes))


def test_tensors_of_the_backend():
    images, labels = keras.ops.convert_to_tensor(IMAGES), keras.ops.convert_to_tensor(LABELS)
    data = {"x": images, "y": {"label": labels}, "batch_size": 4, "shuffle": False}
    check(trained(4, data), trained_on_arrays(4))


def test_python_lists():
    data = {"x": list(IMAGES), "y": {"label": LABELS.tolist()}, "batch_size": 4, "shuffle": False}
    check(trained(4, data), trained_on_arrays(4))
    check(trained(4, {**data, "y": LABELS.tolist()}), trained_on_arrays(4))


@pytest.fixture
def folder(tmp_path):
    """Two folders of PNGs, and the images and labels in the order in which they are read."""
    for number, image in enumerate(IMAGES):
        path = tmp_path / ("cat" if number < 3 else "dog") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path, np.array([0] * 3 + [1] * 5, "int32")


@pytest.mark.parametrize("labelled", [True, False])
def test_folder_read_by_keras_as_it_comes(folder, labelled):
    pytest.importorskip("tensorflow")
    path, labels = folder
    dataset = keras.utils.image_dataset_from_directory(
        path, labels="inferred" if labelled else None, image_size=SHAPE[:2], batch_size=4, shuffle=False, verbose=False
    )
    expected = {"x": IMAGES, "y": labels if labelled else None, "batch_size": 4, "shuffle": False}
    classes = 4 if labelled else None
    found = trained(classes, {"x": dataset}, validation_data=dataset)
    check(found, trained(classes, expected))


def test_last_batch_may_be_smaller():
    found = trained(None, {"x": IMAGES[:7], "batch_size": 4, "shuffle": False})
    tf = pytest.importorskip("tensorflow")
    check(trained(None, {"x": tf.data.Dataset.from_tensor_slices(IMAGES[:7]).batch(4)}), found)


# ---- held-out data --------------------------------------------------------------------------------------------------

HELD = pixels(8, seed=1)


@cache
def motionless(classes):
    return rewinder(standing(classes))


def still(classes):
    return motionless(classes)()


def held_loss(classes, *arrays, **options):
    model = still(classes)
    labels = {"y": LABELS} if classes else {}
    return model.fit(IMAGES, **labels, batch_size=4, verbose=0, **options).history["val_loss"]


@kinds
def test_validation_data_of_each_kind(kind):
    data = kind(as_tuple, HELD, LABELS)
    if kind is arrays:
        options = {"validation_data": (data["x"], data["y"])}
    else:
        options = {"validation_data": data["x"], "validation_steps": data.get("steps_per_epoch")}
    expected, _ = still(4).evaluate(HELD, LABELS, batch_size=4, verbose=0)
    np.testing.assert_allclose(held_loss(4, **options), [expected], rtol=1e-5)


@pytest.mark.parametrize("held", [HELD, (HELD,), [HELD], (HELD, None), {"image": HELD}], ids=lambda v: type(v).__name__)
def test_validation_images_alone(held):
    expected = still(None).evaluate(HELD, batch_size=4, verbose=0)
    np.testing.assert_allclose(held_loss(None, validation_data=held), [expected], rtol=1e-5)


@pytest.mark.parametrize("classes", [None, 4])
def test_validation_split_holds_the_last_images(classes):
    labels = {"y": LABELS[4:]} if classes else {}
    expected = still(classes).evaluate(IMAGES[4:], **labels, batch_size=4, verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(held_loss(classes, validation_split=0.5), [expected], rtol=1e-5)


@kinds
def test_evaluate_on_each_kind(kind):
    data = kind(as_tuple, HELD, LABELS)
    options = {"batch_size": 4} if kind is arrays else {"steps": data.get("steps_per_epoch")}
    given = (data["x"], data["y"]) if kind is arrays else (data["x"],)
    expected = still(4).evaluate(HELD, LABELS, batch_size=4, verbose=0)
    np.testing.assert_allclose(still(4).evaluate(*given, **options, verbose=0), expected, rtol=1e-5)


def test_training_data_are_shuffled_unless_told():
    plain = trained(None, {"x": IMAGES, "batch_size": 4, "shuffle": False})
    shuffled = trained(None, {"x": IMAGES, "batch_size": 4})
    assert np.abs(plain[0] - shuffled[0]).max() > 1e-5
