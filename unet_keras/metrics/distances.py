"""Distances between two sets of images, from their features: NumPy in float64, which knows no networks.

``real`` and ``fake`` are features (N, D) of an extractor's. Every function is a sample's estimate, biased (FID most of
all) by how many there are: compare figures of one extractor and one n only.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from unet_keras.checks import check_counts, is_whole


class Moments(NamedTuple):
    """The mean (D,) and the covariance (D, D) of ``count`` features."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int


class Spread(NamedTuple):
    """The mean of an estimate over parts of the data, and its standard deviation over them."""

    mean: float
    std: float


class PrecisionRecall(NamedTuple):
    """How much of what was made looks real, and how much of what is real could have been made."""

    precision: float
    recall: float


def moments(batches: np.ndarray | Iterable[np.ndarray]) -> Moments:
    """Take the moments of features (N, D), or of batches of them one after the other, which are not kept.

    Batches are joined by their means and sums of squares around them (Chan, Golub & LeVeque 1979), so that no small
    difference of large sums is taken. The covariance divides by N - 1.
    """
    count, mean, squares = 0, 0.0, 0.0
    for batch in [batches] if isinstance(batches, np.ndarray) else batches:
        batch = _features(batch, "batches")
        added, own = len(batch), batch.mean(axis=0)
        centred, shift = batch - own, own - mean
        squares = squares + centred.T @ centred + np.outer(shift, shift) * (count * added / (count + added))
        mean, count = mean + shift * (added / (count + added)), count + added
    if count < 2:
        raise ValueError(f"batches must hold 2 features or more for a covariance, got {count}.")
    return Moments(mean, squares / (count - 1), count)


def fid(real, fake) -> float:
    """Fréchet distance of the Gaussians through two sets of features (Heusel et al. 2017, equation 6).

    |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)), of features (N, D) or Moments. The trace of the root is the sum
    of the roots of the eigenvalues of B^T C_2 B with C_1 = B B^T: symmetric, so that none is complex.
    """
    a, b = (given if isinstance(given, Moments) else moments(np.asarray(given)) for given in (real, fake))
    _check_widths(a.mean[None], b.mean[None])
    values, vectors = np.linalg.eigh(a.covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root.T @ b.covariance @ root), 0.0)).sum()
    return float(np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * shared)


def kid(real, fake, *, subsets: int = 100, subset_size: int = 1000, seed: int = 2020) -> Spread:
    """Kernel distance: the squared maximum mean discrepancy of random subsets (Binkowski et al. 2018, section 4).

    With k(a, b) = (a.b / D + 1)^3, estimated without bias, so that it may fall below 0. Subsets are no larger than the
    smaller set. Drawn as torch-fidelity draws them, so that equal features give equal figures.
    """
    real, fake = _pair(real, fake)
    size = min(subset_size, len(real), len(fake))
    if not is_whole(size, 2) or not is_whole(subsets):
        raise ValueError(f"subset_size must be 2 or more and subsets 1 or more, got {size!r} and {subsets!r}.")
    draw = np.random.RandomState(seed)
    found = []
    for _ in range(subsets):
        a, b = (features[draw.choice(len(features), size, replace=False)] for features in (fake, real))
        found.append(_discrepancy(a, b))
    return Spread(float(np.mean(found)), float(np.std(found)))


def _discrepancy(a, b):
    size, width = a.shape
    within = 0.0
    for features in (a, b):
        kernel = (features @ features.T / width + 1.0) ** 3
        within += (kernel.sum() - np.trace(kernel)) / (size * (size - 1))
    return within - 2.0 * ((a @ b.T / width + 1.0) ** 3).mean()


def inception_score(logits, *, splits: int = 10, seed: int = 2020) -> Spread:
    """exp(mean KL(p(y | x), p(y))) from a classifier's logits (N, classes) (Salimans et al. 2016, section 4).

    Over ``splits`` parts of the images, shuffled as torch-fidelity shuffles them.
    """
    logits = _features(logits, "logits")
    if not is_whole(splits) or splits > len(logits):
        raise ValueError(f"splits must lie in 1 ... {len(logits)}, the number of images, got {splits!r}.")
    logits = logits[np.random.RandomState(seed).permutation(len(logits))]
    log_p = logits - logits.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    ends = [i * len(logits) // splits for i in range(splits + 1)]
    scores = []
    for first, last in pairwise(ends):
        part = log_p[first:last]
        p = np.exp(part)
        # Where a class is never likely, p log p is 0, whatever the logarithm.
        whole = np.log(np.maximum(p.mean(axis=0), np.finfo("float64").tiny))
        scores.append(np.exp((p * (part - whole)).sum(axis=1).mean()))
    return Spread(float(np.mean(scores)), float(np.std(scores)))


def precision_recall(real, fake, *, neighbours: int = 3, batch_size: int = 1024) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019, equations 1 and 2).

    A feature lies within a set's manifold where some member is as near as that member's own ``neighbours``-th nearest.
    Raises ValueError for as many neighbours as there are features, or none, and for batches of no size.
    """
    real, fake = _pair(real, fake)
    if not is_whole(neighbours) or neighbours >= min(len(real), len(fake)):
        raise ValueError(f"neighbours must lie in 1 ... {min(len(real), len(fake)) - 1}, got {neighbours!r}.")
    check_counts(batch_size=batch_size)
    return PrecisionRecall(
        precision=_within(real, fake, neighbours, batch_size), recall=_within(fake, real, neighbours, batch_size)
    )


def _within(members, asked, neighbours, batch_size):
    parts = range(0, len(members), batch_size)
    own = [np.partition(_distances(members[i : i + batch_size], members), neighbours, axis=1) for i in parts]
    reach = np.concatenate([near[:, neighbours] for near in own])
    parts = range(0, len(asked), batch_size)
    near = [(_distances(asked[i : i + batch_size], members) <= reach).any(axis=1) for i in parts]
    return float(np.concatenate(near).mean())


def _distances(a, b):
    """Squared distances (len(a), len(b)); an array's own to itself are exactly 0 or next to it."""
    return np.maximum(np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2.0 * (a @ b.T), 0.0)


def clip_score(image_features, text_features) -> float:
    """100 max(cos, 0) between each image's and its own caption's embedding, averaged (Hessel et al. 2021, section 3).

    Scaled by 100 as is usual, not by the paper's 2.5.
    """
    images, texts = _pair(image_features, text_features, ("image_features", "text_features"))
    if len(images) != len(texts):
        raise ValueError(f"text_features must be one an image, got {len(texts)} for {len(images)} images.")
    lengths = np.linalg.norm(images, axis=1) * np.linalg.norm(texts, axis=1)
    if not lengths.all():
        raise ValueError(
            f"{int((lengths == 0).sum())} of the features are zero, which has no direction: no embeddings."
        )
    cosine = (images * texts).sum(1) / lengths
    return float(100.0 * np.maximum(cosine, 0.0).mean())


def _pair(a, b, names=("real", "fake")):
    a, b = (_features(given, name) for given, name in zip((a, b), names, strict=True))
    _check_widths(a, b)
    return a, b


def _check_widths(a, b):
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"Features of one extractor have one width, got {a.shape[1]} and {b.shape[1]}.")


def _features(given, name):
    features = np.asarray(given, "float64")
    if features.ndim != 2 or not len(features):
        raise ValueError(f"{name} must be features (N, D) with N > 0, got shape {features.shape}.")
    if not np.isfinite(features).all():
        raise ValueError(f"{name} holds NaN or infinity.")
    return features
