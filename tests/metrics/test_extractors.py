"""Extractors: the shipped one, the cache, FID's InceptionV3 beside torch-fidelity's figures, and CLIP's two halves."""

import pickle
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import keras
import numpy as np
import pytest
from helpers import randomized
from PIL import Image

from unet_keras import emoji_table, image_folder
from unet_keras.metrics import (
    Extractor,
    clip_score,
    emoji_features,
    emoji_logits,
    features_of,
    inception,
    inception_features,
)
from unet_keras.metrics import clip as clips
from unet_keras.metrics.extractors import of_network

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 12, 10, 3), dtype="uint8")


# ---- the small one, and the cache -----------------------------------------------------------------------------------


def test_the_shipped_classifier_is_right_as_often_as_its_page_says():
    table = emoji_table()
    _, labels = np.unique(table.groups, return_inverse=True)
    held = np.isin(table.splits, ["val", "compose"])
    right = emoji_logits()(table.images[held]).argmax(axis=1) == labels[held]
    assert round(right.mean(), 3) == pytest.approx(0.837, abs=0.006)
    features = emoji_features()(table.images[:3])
    assert features.shape == (3, 128) and features.dtype == np.float32


@pytest.mark.parametrize("images", [IMAGES, IMAGES / 255.0, IMAGES[0]])
def test_the_small_one_wants_uint8_of_its_size(images):
    with pytest.raises(ValueError, match="images"):
        emoji_features()(images)


def test_a_folder_is_no_array(tmp_path):
    Image.fromarray(IMAGES[0]).save(tmp_path / "one.png")
    for asked in (emoji_features(), partial(features_of, mean_colour)):
        with pytest.raises(ValueError, match=r"give \.images"):
            asked(image_folder(tmp_path, 32))


def mean_colour(images):
    mean_colour.calls += len(images)
    return images.reshape(len(images), -1, 3).mean(axis=1)


def test_features_are_kept_under_the_hash_of_what_they_are_of(tmp_path):
    mean_colour.calls = 0
    plain = features_of(mean_colour, IMAGES, batch_size=2)
    np.testing.assert_allclose(plain, IMAGES.mean(axis=(1, 2)), rtol=1e-6)
    kept = features_of(mean_colour, IMAGES, cache=tmp_path)
    mean_colour.calls = 0
    np.testing.assert_array_equal(features_of(mean_colour, IMAGES, cache=tmp_path), kept)
    assert mean_colour.calls == 4  # the probe
    other = IMAGES.copy()
    other[-1, -1, -1, -1] ^= 1
    features_of(mean_colour, other, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    features_of(Extractor("mean_colour", lambda x: 2 * mean_colour(x)), IMAGES, cache=tmp_path)  # other weights
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("scale", [1.0, 1e6], ids=["small", "beyond float16"])
def test_extractors_of_one_name_are_told_apart_by_more_than_the_first_image(tmp_path, scale):
    images = np.concatenate([np.zeros_like(IMAGES[:1]), IMAGES])
    first, second = (lambda x, k=k: scale * k * mean_colour(x) for k in (1, 2))
    kept = [features_of(function, images, cache=tmp_path) for function in (first, second, first)]
    np.testing.assert_array_equal(kept[1], 2 * kept[0])
    np.testing.assert_array_equal(kept[2], kept[0])
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("extractor", "message"),
    [(lambda x: x, "must give features"), (lambda x: np.full((len(x), 2), np.nan), "NaN")],
)
def test_features_must_be_features(extractor, message):
    with pytest.raises(ValueError, match=message):
        features_of(extractor, IMAGES)


def test_batches_of_no_size_are_refused():
    with pytest.raises(ValueError, match="batch_size must be a whole number of 1 or more, got 0"):
        features_of(mean_colour, IMAGES, batch_size=0)


# ---- InceptionV3 ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    return inception.inception_network()


def torch_arrays(network):
    """Random weights in torch's names and layouts."""
    random, arrays = np.random.default_rng(0), {}
    for layer in network.layers:
        for v in layer.weights:
            shape = tuple(v.shape)
            turned = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
            scale = (2 / np.prod(turned[1:])) ** 0.5 if len(shape) > 1 else 0.1
            start = 1.0 if v.name in ("gamma", "moving_variance") else 0.0
            value = start + scale * random.normal(size=turned).clip(-4, 4)
            arrays[f"{layer.name.replace('-', '.')}.{inception.ENDS[v.name]}"] = value.astype("float32")
    return arrays


# torch-fidelity 0.4.0 of two images, with the weights of torch_arrays: python benchmarks/fidelity.py --tests
FEATURES = [  # every 512th
    [0.4151075482368469, 2.494964361190796, 1.9829425811767578, 0.6812642812728882],
    [0.4036008417606354, 2.540146827697754, 1.9897418022155762, 0.7333832383155823],
]
LOGITS = [  # every 252nd
    [2.204573631286621, -0.5614141821861267, 0.9699610471725464, -2.240565538406372],
    [2.227550983428955, -0.5218616724014282, 0.9326035380363464, -2.2087771892547607],
]


def test_features_and_logits_equal_torch_fidelity(network):
    inception.assign(network, torch_arrays(network))
    for output, stride, wanted in (("features", 512, FEATURES), ("logits", 252, LOGITS)):
        found = of_network(output, network, output, inception.resized)(IMAGES[:2])
        np.testing.assert_allclose(found[:, ::stride], wanted, rtol=1e-4)


def test_the_parameters_are_those_of_the_original(network):
    """23,834,568 without the logits' bias: 23,850,960 in torch's module less 1,008, running statistics apart."""
    trainable = sum(int(np.prod(v.shape)) for v in network.trainable_weights)
    assert trainable == 23_850_960 - 1_008


def test_images_are_resized_as_tensorflow_1_did():
    tf = pytest.importorskip("tensorflow")
    for images in (IMAGES, np.random.default_rng(1).integers(0, 256, (1, 400, 310, 3), dtype="uint8")):
        wanted = tf.compat.v1.image.resize_bilinear(images.astype("float32"), (299, 299)).numpy()
        np.testing.assert_allclose(inception.resized(images), wanted, atol=2e-3)


def test_the_average_does_not_count_the_padding():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(1, 5, 6, 2)).astype("float32")
    turned = torch.tensor(x.transpose(0, 3, 1, 2))
    wanted = torch.nn.functional.avg_pool2d(turned, 3, 1, 1, count_include_pad=False)
    found = keras.ops.convert_to_numpy(inception._average(keras.ops.convert_to_tensor(x)))
    np.testing.assert_allclose(found, wanted.numpy().transpose(0, 2, 3, 1), atol=1e-6)


def test_weights_are_taken_whole_or_not_at_all(network):
    arrays = torch_arrays(network)
    inception.assign(network, {**arrays, "fc.bias": np.zeros(1008), "Mixed_5b.bn.num_batches_tracked": np.array(0)})
    kernel = network.get_layer("Mixed_6b-branch7x7_2-conv").kernel
    wanted = arrays["Mixed_6b.branch7x7_2.conv.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(kernel), wanted)
    few = {name: array for name, array in arrays.items() if name != "fc.weight"}
    for wrong in (few, {**arrays, "more": np.zeros(1)}, {**arrays, "fc.weight": np.zeros((1000, 2048))}):
        with pytest.raises(ValueError, match="missing|not known|another shape"):
            inception.assign(network, wrong)


def test_files_of_weights_are_read_and_nothing_in_them_is_run(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.numpy import save_file

    arrays = {"a.weight": np.arange(6, dtype="float32").reshape(2, 3), "a.bias": np.ones(2, "float32")}
    np.savez(tmp_path / "w.npz", **arrays)
    save_file(arrays, tmp_path / "w.safetensors")
    torch.save({name: torch.tensor(array) for name, array in arrays.items()}, tmp_path / "w.pth")
    for name in ("w.npz", "w.safetensors", "w.pth"):
        read = inception.read_weights(tmp_path / name)
        assert sorted(read) == sorted(arrays)
        np.testing.assert_array_equal(read["a.weight"], arrays["a.weight"])
    (tmp_path / "bad.pth").write_bytes(pickle.dumps(Touch(tmp_path / "touched")))
    for name, message in (("bad.pth", "no plain tensors"), ("none.npz", "no weights at"), ("w.bin", "must be a .pth")):
        (tmp_path / "w.bin").touch()
        with pytest.raises(ValueError, match=message):
            inception.read_weights(tmp_path / name)
    assert not (tmp_path / "touched").exists()
    (tmp_path / "w-6726825d.npz").write_bytes((tmp_path / "w.npz").read_bytes())
    with pytest.raises(ValueError, match="SHA-256"):
        inception_features(tmp_path / "w-6726825d.npz")
    (tmp_path / "w-20251120.npz").write_bytes((tmp_path / "w.npz").read_bytes())
    assert sorted(inception.read_weights(tmp_path / "w-20251120.npz")) == sorted(arrays)  # a date


def test_weights_are_fetched_once_from_a_url(tmp_path, monkeypatch):
    for name in ("there/other", "here"):
        (tmp_path / name).mkdir(parents=True)
    np.savez(tmp_path / "there" / "w.npz", a=np.arange(3.0))
    np.savez(tmp_path / "there" / "other" / "w.npz", a=np.arange(4.0))
    monkeypatch.setattr(keras.utils, "get_file", partial(keras.utils.get_file, cache_dir=str(tmp_path / "here")))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "there"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/w.npz"
        np.testing.assert_array_equal(inception.read_weights(url)["a"], np.arange(3.0))
        other = url.replace("w.npz", "other/w.npz")
        np.testing.assert_array_equal(inception.read_weights(other)["a"], np.arange(4.0))
        server.shutdown()
    assert [path.name for path in (tmp_path / "here").rglob("*.npz")] == ["w.npz", "w.npz"]
    np.testing.assert_array_equal(inception.read_weights(url)["a"], np.arange(3.0))  # and nobody serves it


class Touch:
    """A pickle that would write a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


# ---- CLIP -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    models = pytest.importorskip("keras_hub").models
    letters = [chr(code) for code in range(97, 123)]
    pieces = [*letters, *(letter + "</w>" for letter in letters), "ca", "<|startoftext|>", "<|endoftext|>"]
    tokenizer = models.CLIPTokenizer({piece: i for i, piece in enumerate(pieces)}, ["c a"])
    seeing = models.CLIPVisionEncoder(
        patch_size=4, hidden_dim=8, num_layers=1, num_heads=2, intermediate_dim=16, image_shape=(8, 8, 3)
    )
    reading = models.CLIPTextEncoder(
        vocabulary_size=len(pieces), embedding_dim=8, hidden_dim=8, num_layers=1, num_heads=2, intermediate_dim=16,
        max_sequence_length=12,
    )  # fmt: skip
    backbone = randomized(models.CLIPBackbone(seeing, reading, 6))
    return backbone, tokenizer, clips.of_parts(backbone, tokenizer, name="tiny")


def test_clip_is_loaded_from_a_folder(tiny_clip, tmp_path):
    backbone, tokenizer, clip = tiny_clip
    backbone.save_to_preset(str(tmp_path))
    tokenizer.save_to_preset(str(tmp_path))
    loaded = clips.load_clip(str(tmp_path))
    assert loaded.images.name == str(tmp_path)
    np.testing.assert_allclose(loaded.images(IMAGES), clip.images(IMAGES), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(loaded.texts(["a cat"]), clip.texts(["a cat"]), rtol=1e-4, atol=1e-5)


def test_both_halves_of_clip_are_those_that_make_its_own_logits(tiny_clip):
    backbone, tokenizer, clip = tiny_clip
    prompts = ["a cat", "Dogs  and a very long tale of them"]
    with pytest.warns(UserWarning, match="cut to CLIP's 12"):
        tokens = clips._rows(tokenizer, prompts, 12)
    start, end = tokenizer.start_token_id, tokenizer.end_token_id
    assert tokens[0].tolist() == [
        start,
        tokenizer.token_to_id("a</w>"),
        *map(tokenizer.token_to_id, ("ca", "t</w>")),
        *[end] * 8,
    ]
    assert tokens[1, -1] == end and end not in tokens[1, :-1]
    pictures = IMAGES[:2, :10, :10]
    pixels = np.stack([clips._prepared(image, (8, 8)) for image in pictures])
    logits = backbone.predict({"images": pixels, "token_ids": tokens}, verbose=0)["vision_logits"]
    scale = np.exp(keras.ops.convert_to_numpy(backbone.clip_head.logit_scale))
    cosine = np.diagonal(logits) / scale
    wanted = 100 * np.maximum(cosine, 0).mean()
    with pytest.warns(UserWarning, match=r"Prompts of up to \d\d tokens are cut to CLIP's 12, marks included"):
        texts = clip.texts(prompts)
    np.testing.assert_allclose(clip_score(clip.images(pictures), texts), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("images", [IMAGES / 255.0, IMAGES[0]])
def test_clip_wants_uint8(tiny_clip, images):
    with pytest.raises(ValueError, match="images must be uint8"):
        tiny_clip[2].images(images)


def test_clip_sees_the_middle_of_a_picture_resized():
    flat = np.full((6, 18, 3), 200, "uint8")
    flat[:, :3] = 0
    prepared = clips._prepared(flat, (8, 8))
    wanted = (200 / 255 - np.array(clips.MEAN)) / clips.STD
    np.testing.assert_allclose(prepared, np.broadcast_to(wanted, (8, 8, 3)), rtol=1e-5)
