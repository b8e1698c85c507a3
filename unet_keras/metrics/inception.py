"""The network that FID is defined with: InceptionV3 of TF-Slim as frozen on 2015-12-05, with 1008 logits.

It is not ``keras.applications.InceptionV3``: its average pools do not count the padding, the last block's pool is a
maximum, there are 1008 logits, and other weights. The weights are read from a file in the names of
pytorch-fid and torch-fidelity, ``pt_inception-2015-12-05-6726825d.pth``, or the same as .safetensors or .npz.
"""

import hashlib
import os
import re
from pathlib import Path

import keras
import numpy as np

from unet_keras.metrics.extractors import Extractor, of_network

NAME = "inception-2015-12-05"
URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
SIZE = 299


def inception_features(weights: str | os.PathLike = URL) -> Extractor:
    """Give the 2048 features that FID, KID, precision and recall are reported with.

    ``weights``: a file .pth (which needs torch, and is read without running any code in it), .safetensors or .npz, or
    the URL of one, which is kept in Keras's cache. A hash in its name, as in torch's, is checked. Images of any size
    are resized as the original graph does. Raises ValueError for weights that do not fit.
    """
    return of_network(f"{NAME}-features", _loaded(weights), "features", resized)


def inception_logits(weights: str | os.PathLike = URL) -> Extractor:
    """Give the 1008 logits, without their bias as is usual, that the Inception score is reported with."""
    return of_network(f"{NAME}-logits", _loaded(weights), "logits", resized)


def resized(images: np.ndarray) -> np.ndarray:
    """Resize (N, H, W, C) to 299 x 299, bilinear as TensorFlow 1 did: no antialiasing, corners not centred."""
    down, across = (_interpolation(size) for size in images.shape[1:3])
    rows = np.einsum("ih,nhwc->niwc", down, images.astype("float32"), optimize=True)
    return np.einsum("jw,niwc->nijc", across, rows, optimize=True)


def _interpolation(size):
    """The matrix (299, size) from pixels to pixels."""
    place = np.arange(SIZE, dtype="float32") * np.float32(size / SIZE)
    low = np.floor(place).astype(int)
    share, matrix = place - low, np.zeros((SIZE, size), "float32")
    np.add.at(matrix, (np.arange(SIZE), low), 1 - share)
    np.add.at(matrix, (np.arange(SIZE), np.minimum(low + 1, size - 1)), share)
    return matrix


# ---- the network ----------------------------------------------------------------------------------------------------


def inception_network() -> keras.Model:
    """Build the network, its weights still to be set: images (N, 299, 299, 3) 0 ... 255 -> features (N, 2048), logits.

    A layer's name is torch's with dashes for dots.
    """
    image = keras.Input((SIZE, SIZE, 3), name="image", dtype="float32")
    x = keras.layers.Rescaling(1 / 128, -1.0, dtype="float32")(image)
    x = _conv(x, "Conv2d_1a_3x3", 32, 3, 2)
    x = _conv(x, "Conv2d_2a_3x3", 32, 3, padding="valid")
    x = _conv(x, "Conv2d_2b_3x3", 64, 3)
    x = _shrink(x)
    x = _conv(x, "Conv2d_3b_1x1", 80, 1)
    x = _conv(x, "Conv2d_4a_3x3", 192, 3, padding="valid")
    x = _shrink(x)
    for name, filters in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        x = _wide(x, name, filters)
    x = _first_reduction(x, "Mixed_6a")
    for name, filters in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        x = _factorised(x, name, filters)
    x = _second_reduction(x, "Mixed_7a")
    x = _expanded(x, "Mixed_7b", _average)
    x = _expanded(x, "Mixed_7c", _maximum)
    features = keras.layers.GlobalAveragePooling2D(data_format="channels_last", dtype="float32")(x)
    logits = keras.layers.Dense(1008, use_bias=False, kernel_initializer="zeros", name="fc", dtype="float32")(features)
    return keras.Model(image, {"features": features, "logits": logits}, name="inception")


def _conv(x, name, filters, kernel, strides=1, padding=None):
    last, plain = {"data_format": "channels_last"}, {"dtype": "float32"}
    padding = padding or ("same" if strides == 1 else "valid")
    options = {"use_bias": False, "kernel_initializer": "zeros", "name": f"{name}-conv"}
    conv = keras.layers.Conv2D(filters, kernel, strides, padding, **options, **last, **plain)
    norm = keras.layers.BatchNormalization(axis=-1, epsilon=1e-3, name=f"{name}-bn", **plain)
    return keras.layers.ReLU(**plain)(norm(conv(x)))


def _chain(x, name, *steps):
    """Several convolutions, each (the end of its name, filters, kernel[, strides])."""
    for end, *options in steps:
        x = _conv(x, f"{name}-{end}", *options)
    return x


def _shrink(x):
    return keras.layers.MaxPooling2D(3, 2, data_format="channels_last", dtype="float32")(x)


def _average(x):
    return keras.layers.AveragePooling2D(3, 1, "same", data_format="channels_last", dtype="float32")(x)


def _maximum(x):
    return keras.layers.MaxPooling2D(3, 1, "same", data_format="channels_last", dtype="float32")(x)


def _joined(*branches):
    return keras.layers.Concatenate(axis=-1, dtype="float32")(branches)


def _wide(x, name, pooled):
    return _joined(
        _chain(x, name, ("branch1x1", 64, 1)),
        _chain(x, name, ("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
        _chain(x, name, ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
        _chain(_average(x), name, ("branch_pool", pooled, 1)),
    )


def _first_reduction(x, name):
    return _joined(
        _chain(x, name, ("branch3x3", 384, 3, 2)),
        _chain(x, name, ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2)),
        _shrink(x),
    )


def _factorised(x, name, c):
    row, column = (1, 7), (7, 1)
    long = (c, 1), (c, column), (c, row), (c, column), (192, row)
    return _joined(
        _chain(x, name, ("branch1x1", 192, 1)),
        _chain(x, name, ("branch7x7_1", c, 1), ("branch7x7_2", c, row), ("branch7x7_3", 192, column)),
        _chain(x, name, *((f"branch7x7dbl_{i}", *step) for i, step in enumerate(long, 1))),
        _chain(_average(x), name, ("branch_pool", 192, 1)),
    )


def _second_reduction(x, name):
    long = (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)
    return _joined(
        _chain(x, name, ("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)),
        _chain(x, name, *((f"branch7x7x3_{i}", *step) for i, step in enumerate(long, 1))),
        _shrink(x),
    )


def _expanded(x, name, pool):
    def both(x, end):
        return _joined(*(_conv(x, f"{name}-{end}{side}", 384, k) for side, k in (("a", (1, 3)), ("b", (3, 1)))))

    return _joined(
        _chain(x, name, ("branch1x1", 320, 1)),
        both(_chain(x, name, ("branch3x3_1", 384, 1)), "branch3x3_2"),
        both(_chain(x, name, ("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3)), "branch3x3dbl_3"),
        _chain(pool(x), name, ("branch_pool", 192, 1)),
    )


# ---- its weights ----------------------------------------------------------------------------------------------------

ENDS = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
UNUSED = r"fc\.bias|.*\.num_batches_tracked"


def assign(network, arrays: dict[str, np.ndarray]) -> None:
    """Set every weight from arrays in torch's names and layouts; raises ValueError, and sets none, unless all fit."""
    table = {f"{layer.name.replace('-', '.')}.{ENDS[v.name]}": v for layer in network.layers for v in layer.weights}
    turned = {name: _turned(array) for name, array in arrays.items() if not re.fullmatch(UNUSED, name)}
    both = set(table) & set(turned)
    faults = {
        "missing": sorted(set(table) - both),
        "not known": sorted(set(turned) - both),
        "of another shape": sorted(name for name in both if turned[name].shape != tuple(table[name].shape)),
    }
    if any(faults.values()):
        told = "; ".join(f"{len(n)} {what}, e.g. {', '.join(n[:3])}" for what, n in faults.items() if n)
        raise ValueError(f"The weights are not those of FID's InceptionV3: {told}.")
    for name, variable in table.items():
        variable.assign(turned[name])


def _turned(array):
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def read_weights(source: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read arrays by name from a file or a URL; nothing in it is run. Raises ValueError for a wrong hash or format."""
    if re.match(r"https?://", str(source)):
        own = hashlib.sha256(str(source).encode()).hexdigest()[:16]  # files of one name from two places are two files
        source = keras.utils.get_file(origin=str(source), cache_subdir=f"unet_keras/{own}")
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"There are no weights at {path}: give a file, or a URL such as {URL}.")
    _check_hash(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix in (".pth", ".pt"):
        return _torch_file(path)
    raise ValueError(f"weights must be a .pth, .safetensors or .npz file, got {path}.")


def _check_hash(path):
    told = re.search(r"-(?=\d*[a-f])([0-9a-f]{8,})$", path.stem)  # with a letter: a date is no hash
    with path.open("rb") as stream:
        if told and not (found := hashlib.file_digest(stream, "sha256").hexdigest()).startswith(told[1]):
            raise ValueError(f"{path} has the SHA-256 {found[:8]}..., not that of its name: fetch it again.")


def _safetensors(path):
    try:
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ImportError(f"{path} needs safetensors: pip install unet-keras[hub].") from error
    return load_file(path)


def _torch_file(path):
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"{path} needs torch to be read: install it, or save the arrays as .npz.") from error
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} holds no plain tensors: {error}.") from error
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _loaded(weights):
    arrays = read_weights(weights)
    network = inception_network()
    assign(network, arrays)
    return network
