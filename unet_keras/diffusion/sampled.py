"""What a trained model is for: ``generate``, at once or step by step, from noise or an image, and back to noise."""

import numpy as np

from unet_keras.diffusion import loop, sampling
from unet_keras.diffusion.attached import AttachedModel
from unet_keras.diffusion.guidance import classifier_free, unclipped
from unet_keras.diffusion.replicas import placed, places
from unet_keras.diffusion.samplers import ddim, ddim_inversion
from unet_keras.diffusion.schedules import trailing
from unet_keras.diffusion.variance import check_channels, check_rows


class SampledModel(AttachedModel):
    """The half of ``DiffusionModel`` that samples; the other half gives it its network, schedule and prediction."""

    def generate(
        self,
        conditions,
        *,
        steps=50,
        sampler=ddim,
        spacing=trailing,
        guidance=1.0,
        negative=None,
        combine=classifier_free,
        threshold=None,
        start=None,
        strength=1.0,
        size=None,
        seed=None,
        noise=None,
        batch_size=None,
        progress=True,
    ) -> np.ndarray:
        """Sample images, uint8 (N, H, W, C), in the layout of the network's images; of latents, float32.

        conditions    a list of prompts, for a model with an encoder; or {name: array (N, ...)}, or the array alone
                      where there is one condition; or how many images. What is left out stands at its null
        steps         the number of steps along the schedule, 1 to T
        sampler       points -> rows, see samplers.py
        spacing       (T, steps) -> the timesteps visited
        guidance      scale of classifier-free guidance; 1 samples the conditional model as it is. Or a function
                      Point -> scale, e.g. ``interval``
        negative      what guidance leads away from, in place of null: prompts or conditions, one for all images or
                      one for each
        combine       (conditional, unconditional, scale) -> output, see guidance.py
        threshold     maps the clean estimate to one that an image can take: ``clipped``, ``dynamic()``, ``unclipped``;
                      that of the model's values unless given
        start         images (N, H, W, C) to begin with, as ``fit`` takes them, in place of pure noise
        strength      how much of the way to noise and back ``start`` goes, in (0, 1]: the last ``strength * steps`` of
                      the steps are done, from alpha start + sigma noise (SDEdit, Meng et al. 2022)
        size          (height, width) for a network that leaves them open, where there is no ``start``
        seed          a whole number: the same images again, also on another backend up to rounding
        noise         in place of the seed: the noise to begin with and that of each row, (1 + rows, N, H, W, C); for a
                      deterministic sampler (N, H, W, C), such as ``invert`` gives
        batch_size    images made at a time; all at once unless given. Image i of a seed does not depend on it
        progress      show a progress bar once sampling takes more than a few seconds

        Raises ValueError for conditions that the network does not take or lacks, steps outside 1 ... T, negative
        guidance, guidance of a model that was not trained with dropped conditions, a variance not learned, and a
        start that is no image of the network's, or as many as are asked for.
        """
        chosen = {"steps": steps, "sampler": sampler, "spacing": spacing, "start": start, "strength": strength}
        chosen |= {"guidance": guidance, "negative": negative, "combine": combine, "threshold": threshold}
        chosen |= {"size": size, "seed": seed, "noise": noise}
        asked = self._request(conditions, **chosen)
        batches = asked.batches(batch_size)
        tick = loop.progress_bar(sum(len(batch.rows) for batch in batches)) if progress else None
        images = [self._run(batch, tick) for batch in batches]
        return np.concatenate([self.values.sampled(batch) for batch in images])[: len(asked.numbers)]

    def denoising(self, conditions, *, network=None, **options):
        """Sample and yield a ``Frame`` after each row, from noise to image, of all images at once.

        The options are those of ``generate``, but for ``batch_size`` and ``progress``.
        ``network``: another form of ``averaged``, whose further outputs come along as ``Frame.extras``.
        """
        asked = self._request(conditions, **options)
        return asked.frames(self._step(asked, network))

    def invert(self, images, conditions=None, *, sampler=ddim_inversion, **options) -> np.ndarray:
        """Find the noise that images come from: float32 (N, H, W, C), for ``generate(..., noise=...)``.

        ``images`` and their ``conditions`` are what ``fit`` takes; the options are those of ``denoising``, and should
        be those that ``generate`` will be given, but for the threshold, which is none (Song, Meng & Ermon 2021,
        section 4.3).
        """
        count = len(images) if conditions is None else conditions
        asked = self._request(count, **{"threshold": unclipped, **options}, sampler=sampler, start=images, upwards=True)
        (whole,) = asked.batches(None)
        return self._run(whole)[: len(asked.numbers)]

    def _request(self, conditions, **options):
        options["threshold"] = options.get("threshold") or self.values.threshold
        check_channels(self.network)
        asked = sampling.request(self.named_inputs, self.schedule, self.dropping.learned, conditions, **options)
        check_rows(asked.rows, self.bound is not None)
        return asked

    def _run(self, asked, tick=None):
        """Run through a request, shared out to the devices of a strategy of TensorFlow's."""
        strategy = getattr(self, "distribute_strategy", None)
        found = places(strategy)
        shares = zip(found, asked.shares(len(found)), strict=False)  # of few images, some devices have none
        return loop.last([placed(strategy, at, share.frames(self._step(share, at=at))) for at, share in shares], tick)

    def _step(self, asked, network=None, at=None):
        """The compiled step that a request needs, compiled once; on the device ``at``, for it reads the copy there."""
        network = self.averaged if network is None else network
        guided, own = None if asked.null is None else asked.combine, self.prediction
        key = (network, own, guided, asked.threshold, at)

        def made(fixed):
            options = {"jit": getattr(self, "jit_compile", None) is True, "fixed": fixed}
            return loop.make_step(network, own, asked.combine, asked.threshold, **options)

        changed = isinstance(known := self._steps.get(key), loop.Written) and known.outdated()
        if known is None or changed:
            # What is compiled for training, or has changed before, will change again.
            self._steps[key] = made(fixed=not (self.compiled or changed or at))

        def step(*args):
            self.attach()  # each time: frames may be asked for while fit goes on
            if key not in self._steps:  # forgotten in between, as the network has other variables now
                self._steps[key] = made(fixed=False)
            return self._steps[key](*args)

        return step
