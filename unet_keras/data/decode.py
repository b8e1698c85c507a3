"""An image file of any kind to 8-bit RGB pixels of one size: upright, on white, scaled and cropped.

Knows nothing of folders, captions or batches.
"""

from os import PathLike

import numpy as np
from PIL import Image, ImageOps


def readable_extensions() -> frozenset[str]:
    """Name the file name endings, lower case and with their dot, of the formats Pillow can open."""
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def load_image(path: str | PathLike, height: int, width: int) -> np.ndarray:
    """Read an image file as (height, width, 3) uint8.

    The EXIF orientation is applied, what is transparent turns white, the shorter side is scaled to fit with the aspect
    kept, and the rest is cropped around the centre. Of an animation, the first frame. A broken file raises whatever
    Pillow's decoders make of it, which may be any exception.
    """
    with Image.open(path) as image:
        # A photograph, if a JPEG, decodes up to ten times faster at 1/2 to 1/8. Four times the size wanted, because
        # Pillow rounds the smaller size up, which moves the far edge by up to one pixel of these.
        image.draft(None, (4 * max(height, width),) * 2)
        return np.asarray(_fit(_rgb(ImageOps.exif_transpose(image)), height, width))


def _rgb(image):
    """Convert to 8-bit RGB, white where the image is transparent."""
    if image.mode.startswith(("I", "F")):
        image = _eight_bit(image)
    if not image.mode.endswith(("A", "a", "P")) and "transparency" not in image.info:
        return image.convert("RGB")
    pixels = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")


def _eight_bit(image):
    """Convert 16-bit grey to 8 bits, which Pillow's own `convert` would clip instead of scaling."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"the range of pixels of mode {image.mode} is not known; save the image with 8 or 16 bits")
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))


def _fit(image, height, width):
    """Scale the shorter side to fit and cut out the centre, as one resampling of the part that is kept.

    Resizing first and cropping after would, for a strip of 1 by 60,000 pixels, build an image 60,000 times as long as
    it needs to be. The crop falls on whole pixels of the result, so an image that already fits is copied, not blurred.
    """
    scale = max(width / image.width, height / image.height)
    across, down = min(image.width, width / scale), min(image.height, height / scale)
    left = round((image.width - across) * scale) // 2 / scale
    top = round((image.height - down) * scale) // 2 / scale
    return image.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, left + across, top + down))
