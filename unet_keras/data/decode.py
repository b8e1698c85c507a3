"""An image file of any kind to 8-bit RGB pixels of one size: upright, on white, scaled and cropped.

Run as a program, it decodes for another process: see ``serve``. Knows nothing of folders, captions or batches.
"""

import signal
import struct
import sys
import warnings
from os import PathLike, fsdecode

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


# ---- for another process --------------------------------------------------------------------------------------------

LENGTH, LengthError = struct.Struct("<I"), struct.error
"""How a message between the two processes begins: the number of bytes that follow."""


def serve(height: int, width: int) -> None:
    """Decode the files whose names come in until there are no more.

    A request is a name; a reply is the pixels, height * width * 3 bytes, or why there are none, both after their length
    and a byte that says which. This file is run by itself, so that a process starts in a tenth of a second and needs no
    Keras; nothing is pickled; and what breaks a decoder breaks no training.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the training's
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    while head := sys.stdin.buffer.read(LENGTH.size):
        name = fsdecode(sys.stdin.buffer.read(*LENGTH.unpack(head)))
        try:
            good, body = b"+", load_image(name, height, width).tobytes()
        except Exception as error:  # Pillow's decoders raise almost anything on broken data
            good, body = b"-", f"{type(error).__name__}: {error}".encode(errors="replace")
        sys.stdout.buffer.write(LENGTH.pack(len(body)) + good + body)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
