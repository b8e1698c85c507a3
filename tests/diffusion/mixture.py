"""A Gaussian mixture, the best denoiser for it and what its samples must keep, in NumPy.

At noise level (alpha, sigma) a mixture of N(mu_k, s_k^2 I) is one of N(alpha mu_k, v_k I), with
v_k = (alpha s_k)^2 + sigma^2.
"""

import numpy as np

from .test_mixture import CENTRES, SHARE, SPREAD


def best_clean(x, point):
    """E[x_0 | x] for images (N, 1, 1, 2)."""
    _, alpha, sigma = point
    v = (alpha * SPREAD) ** 2 + sigma**2
    off = x[..., None, :] - alpha * CENTRES  # (N, 1, 1, K, 2)
    logits = np.log(SHARE / v) - np.sum(off**2, axis=-1) / (2 * v)
    likely = np.exp(logits - logits.max(axis=-1, keepdims=True))
    likely /= likely.sum(axis=-1, keepdims=True)
    pull = (alpha * SPREAD**2 / v)[:, None] * off
    return np.sum(likely[..., None] * (CENTRES + pull), axis=-2)
