"""How good samples are: FID, KID, Inception score, precision and recall, CLIP score, on any feature extractor.

    from unet_keras import metrics

    quality = metrics.sampled(1000, metrics.compared(images, metrics.emoji_features()), seed=0)
    print(quality(model))           # fid 21.3 (extractor emoji-features, n 1000, reference 2818, seed 0)

An extractor is a callable images (N, H, W, C) uint8 -> features (N, D). A measure is a callable images -> Report.
Knows nothing of networks or noise; how likely images are under a model is in diffusion/likelihood.py.
"""

from unet_keras.metrics.clip import Clip, load_clip
from unet_keras.metrics.distances import (
    Moments,
    PrecisionRecall,
    Spread,
    clip_score,
    fid,
    inception_score,
    kid,
    moments,
    precision_recall,
)
from unet_keras.metrics.extractors import Extractor, emoji_features, emoji_logits, features_of
from unet_keras.metrics.inception import inception_features, inception_logits
from unet_keras.metrics.reports import Report, aligned, classified, compared, sampled

__all__ = [
    "fid", "kid", "inception_score", "precision_recall", "clip_score", "moments", "Moments", "Spread",
    "PrecisionRecall",
    "Extractor", "features_of", "emoji_features", "emoji_logits", "inception_features", "inception_logits",
    "load_clip", "Clip",
    "compared", "classified", "aligned", "sampled", "Report",
]  # fmt: skip
