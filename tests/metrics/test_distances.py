"""The distances equal torch-fidelity's of the same features, and the papers' formulas written out with SciPy."""

from functools import partial

import numpy as np
import pytest
from scipy import linalg, special
from scipy.spatial.distance import cdist

from unet_keras.metrics import clip_score, fid, inception_score, kid, moments, precision_recall

RANDOM = np.random.default_rng(0)
MIX = RANDOM.normal(size=(24, 24))
REAL = RANDOM.normal(size=(400, 24)) @ MIX
FAKE = 1.1 * RANDOM.normal(size=(300, 24)) @ MIX + 0.3
LOGITS = 3.0 * RANDOM.normal(size=(300, 10))
FEW = RANDOM.normal(size=(12, 24)) @ MIX  # fewer than there are features: singular covariances


# torch-fidelity 0.4.0's figures: python benchmarks/fidelity.py --tests
FID = {"many": 20.7864464048464, "few": 306.75944162894143}
KID = 11.447113557866004, 77.58914875328166
INCEPTION_SCORE = 3.592487972681192, 0.2811934114037749
PRECISION_RECALL = {3: (0.6666666865348816, 0.9100000262260437), 5: (0.8100000023841858, 0.949999988079071)}


def by_root(real, fake):
    """The equation as it stands, with a matrix's square root."""
    means, covariances = zip(*((x.mean(0), np.cov(x, rowvar=False)) for x in (real, fake)), strict=True)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    return np.square(means[0] - means[1]).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)


@pytest.mark.parametrize("fake", [FAKE, REAL + 1.0, REAL], ids=["other", "shifted", "same"])
def test_fid_equals_the_equation(fake):
    np.testing.assert_allclose(fid(REAL, fake), by_root(REAL, fake), rtol=1e-6, atol=1e-6)


def test_fid_equals_torch_fidelity():
    for name, fake in {"many": FAKE, "few": FEW}.items():
        np.testing.assert_allclose(fid(REAL, fake), FID[name], rtol=1e-4)


def test_fid_of_moments_that_were_taken_batch_by_batch():
    offset = 1e4  # large against the spread: what a difference of sums of squares would lose
    streamed = moments(FAKE[i : i + 7] + offset for i in range(0, 300, 7))
    np.testing.assert_allclose(streamed.covariance, np.cov(FAKE, rowvar=False), rtol=1e-9, atol=1e-9)
    assert streamed.count == 300
    np.testing.assert_allclose(fid(moments(REAL + offset), streamed), fid(REAL, FAKE), rtol=1e-6)


def test_kid_equals_the_unbiased_estimate_of_the_discrepancy():
    a, b = REAL[:50], FAKE[:50]
    within = [((x @ x.T / 24 + 1) ** 3)[~np.eye(50, dtype=bool)].mean() for x in (a, b)]
    wanted = sum(within) - 2 * ((a @ b.T / 24 + 1) ** 3).mean()
    found = kid(a, b, subsets=3)
    np.testing.assert_allclose(found.mean, wanted, rtol=1e-9)
    np.testing.assert_allclose(found.std, 0.0, atol=1e-9 * abs(wanted))


def test_kid_equals_torch_fidelity():
    np.testing.assert_allclose(kid(REAL, FAKE, subsets=20, subset_size=100), KID, rtol=1e-4)


def test_inception_score_equals_the_equation():
    p = special.softmax(LOGITS, axis=1)
    whole = np.exp(np.mean([(row * np.log(row / p.mean(0))).sum() for row in p]))
    np.testing.assert_allclose(inception_score(LOGITS, splits=1).mean, whole, rtol=1e-9)
    certain = np.eye(10)[np.arange(300) % 10] * 1e4  # ten classes alike, each image sure of one
    np.testing.assert_allclose(inception_score(certain, splits=1), (10.0, 0.0), rtol=1e-9)


def test_inception_score_equals_torch_fidelity():
    np.testing.assert_allclose(inception_score(LOGITS), INCEPTION_SCORE, rtol=1e-4)


def test_precision_and_recall_equal_the_definition():
    def share(members, asked):
        reach = np.sort(cdist(members, members), axis=1)[:, 3]
        return np.mean([(cdist(x[None], members)[0] <= reach).any() for x in asked])

    fake = np.concatenate([FAKE[:100], FAKE[:40] + 20.0])
    wanted = share(REAL, fake), share(fake, REAL)
    assert 0 < wanted[0] < wanted[1] < 1
    np.testing.assert_allclose(precision_recall(REAL, fake, batch_size=64), wanted)


@pytest.mark.parametrize("neighbours", [3, 5])
def test_precision_and_recall_equal_torch_fidelity(neighbours):
    found = precision_recall(REAL, FAKE, neighbours=neighbours)
    np.testing.assert_allclose(found, PRECISION_RECALL[neighbours], rtol=1e-4)


def test_clip_score_is_a_hundred_cosines():
    images, texts = REAL[:5], FAKE[:5]
    cosine = [1 - cdist(a[None], b[None], "cosine")[0, 0] for a, b in zip(images, texts, strict=True)]
    assert min(cosine) < 0 < max(cosine)
    np.testing.assert_allclose(clip_score(images, texts), 100 * np.maximum(cosine, 0).mean(), rtol=1e-9)
    np.testing.assert_allclose(clip_score(images, 7 * images), 100.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(fid, REAL, FAKE[:, :5]), "one width"),
        (partial(fid, REAL, FAKE[0]), "features"),
        (partial(fid, REAL, FAKE[:1]), "2 features or more"),
        (partial(fid, REAL, FAKE * np.nan), "NaN"),
        (partial(kid, REAL, FAKE, subset_size=1), "subset_size"),
        (partial(kid, REAL, FAKE, subset_size=2.5), "subset_size"),
        (partial(kid, REAL, FAKE, subsets=0), "subsets"),
        (partial(inception_score, LOGITS, splits=0), "splits"),
        (partial(inception_score, LOGITS, splits=2.5), "splits"),
        (partial(precision_recall, REAL, FAKE[:3]), "neighbours"),
        (partial(precision_recall, REAL, FAKE, neighbours=2.5), "neighbours"),
        (partial(precision_recall, REAL, FAKE, batch_size=0), "batch_size"),
        (partial(clip_score, REAL, FAKE), "one an image"),
        (partial(clip_score, REAL, 0 * REAL), "no direction"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
