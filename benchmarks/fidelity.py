"""Our metrics and FID's InceptionV3 against torch-fidelity: the largest relative difference of each.

    pip install --no-deps torch-fidelity==0.4.0 && python benchmarks/fidelity.py
    python benchmarks/fidelity.py --tests            torch-fidelity's figures that tests/metrics compare with

Features are random; so are the network's weights, unless ``--weights`` names the file of the real ones. torch-fidelity
imports torchvision, of which nothing here has a use: where it is not installed, an empty module takes its place.
"""

import argparse
import importlib.util
import json
import re
import runpy
import sys
from pathlib import Path
from unittest.mock import MagicMock

import keras
import numpy as np
import torch

if importlib.util.find_spec("torchvision") is None:
    absent = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
    sys.modules |= {name: MagicMock(__spec__=None) for name in absent}

from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from unet_keras import metrics
from unet_keras.metrics import inception
from unet_keras.metrics.extractors import of_network

TESTS = Path(__file__).parents[1] / "tests"
STRIDES = {"features": 512, "logits": 252}
"""One in so many features and logits is kept in the tests."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="pt_inception-2015-12-05-6726825d.pth")
    parser.add_argument("--tests", action="store_true", help="print the figures that the tests compare with")
    options = parser.parse_args()
    if options.tests:
        print({**tests_distances(), **tests_network()})
        return
    print(keras.backend.backend(), json.dumps({**distances(), **network(options.weights)}, indent=1))


def distances(n=2000, width=256):
    random = np.random.default_rng(0)
    mix = random.normal(size=(width, width)) / width**0.5
    real, fake = random.normal(size=(n, width)) @ mix, 1.1 * random.normal(size=(n // 2, width)) @ mix + 0.1
    a, b, logits = torch.tensor(fake), torch.tensor(real), 3 * random.normal(size=(n, 50))
    stats = [metric_fid.fid_features_to_statistics(features) for features in (a, b)]
    kid = metric_kid.kid_features_to_metric(a, b, kid_subset_size=500, verbose=False)
    prc = metric_prc.prc_features_to_metric(a, b, save_cpu_ram=False, verbose=False)
    pairs = {
        "fid": (metrics.fid(real, fake), metric_fid.fid_statistics_to_metric(*stats, verbose=False)),
        "kid": (metrics.kid(real, fake, subset_size=500), kid),
        "inception score": (metrics.inception_score(logits), metric_isc.isc_features_to_metric(torch.tensor(logits))),
        "precision, recall": (metrics.precision_recall(real, fake), {k: prc[k] for k in ("precision", "recall")}),
    }
    return {name: difference(ours, list(theirs.values())) for name, (ours, theirs) in pairs.items()}


def tests_distances():
    """torch-fidelity's figures of the features in tests/metrics/test_distances.py."""
    named = runpy.run_path(str(TESTS / "metrics" / "test_distances.py"))
    real, fake, few, logits = (torch.tensor(named[name]) for name in ("REAL", "FAKE", "FEW", "LOGITS"))
    quiet = {"verbose": False}
    found = {}
    for name, features in (("many", fake), ("few", few)):
        stats = [metric_fid.fid_features_to_statistics(x) for x in (features, real)]
        found[f"fid {name}"] = list(metric_fid.fid_statistics_to_metric(*stats, **quiet).values())
    kid = metric_kid.kid_features_to_metric(fake, real, kid_subsets=20, kid_subset_size=100, **quiet)
    found["kid"] = list(kid.values())
    found["inception score"] = list(metric_isc.isc_features_to_metric(logits).values())
    for near in (3, 5):
        prc = metric_prc.prc_features_to_metric(fake, real, prc_neighborhood=near, save_cpu_ram=False, **quiet)
        found[f"precision, recall {near}"] = [prc["precision"], prc["recall"]]
    return found


def tests_network():
    """torch-fidelity's features and logits of the images and weights in tests/metrics/test_extractors.py."""
    sys.path.insert(0, str(TESTS))
    named = runpy.run_path(str(TESTS / "metrics" / "test_extractors.py"))
    arrays = named["torch_arrays"](inception.inception_network())
    reference = torch_network(None).eval()
    state = {name: torch.tensor(array) for name, array in arrays.items()}
    left = torch.nn.Module.load_state_dict(reference, state, strict=False)
    if left.unexpected_keys or any(not re.fullmatch(inception.UNUSED, name) for name in left.missing_keys):
        raise ValueError(f"The weights of the tests are not those of torch-fidelity's module: {left}.")
    with torch.no_grad():
        found = reference(torch.tensor(named["IMAGES"][:2].transpose(0, 3, 1, 2)))
    return {name: x[:, :: STRIDES[name]].tolist() for name, x in zip(STRIDES, found, strict=True)}


def network(weights):
    reference = torch_network(weights).eval()
    ours = inception.inception_network()
    inception.assign(ours, {name: tensor.numpy() for name, tensor in reference.state_dict().items()})
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 40, 3), dtype="uint8")
    with torch.no_grad():
        wanted = reference(torch.tensor(images.transpose(0, 3, 1, 2)))
    found = [of_network(name, ours, name, inception.resized)(images) for name in ("features", "logits")]
    names = ("InceptionV3, 2048 features", "InceptionV3, 1008 logits")
    return {name: difference(a, b.numpy()) for name, a, b in zip(names, found, wanted, strict=True)}


def torch_network(weights):
    """torch-fidelity's module, with random weights of a size that keeps the activations' unless a file is given."""
    if weights is not None:
        return FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], weights)

    class Random(FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            for name, tensor in self.state_dict().items():
                fan = max(tensor[0].numel(), 1) if tensor.dim() else 1
                scale, start = (1.4 / fan**0.5, 0.0) if tensor.dim() > 1 else (0.1, float("bias" not in name))
                if tensor.is_floating_point():
                    tensor.copy_(start * ("mean" not in name) + scale * torch.randn_like(tensor).clip(-4, 4))

    torch.manual_seed(0)
    load, torch.load = torch.load, lambda *args, **options: None
    try:
        return Random("inception", ["2048", "logits_unbiased"], "none")
    finally:
        torch.load = load


def difference(ours, theirs):
    ours, theirs = np.asarray(ours, "float64"), np.asarray(theirs, "float64")
    return float(f"{np.abs(ours - theirs).max() / np.abs(theirs).max():.1e}")


if __name__ == "__main__":
    main()
