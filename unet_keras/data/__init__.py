"""Images to train on: the built-in emoji with captions, and any folder of pictures.

Both give uint8 RGB, 0 to 255, channels last; neither knows of networks or noise.
"""

from unet_keras.data.emoji import emoji_captions, emoji_table, load_emoji
from unet_keras.data.folder import by_label, image_folder
from unet_keras.data.recoloured import Recoloured
from unet_keras.data.redrawn import Redrawn
from unet_keras.data.stream import image_stream

__all__ = [
    "Recoloured",
    "Redrawn",
    "by_label",
    "emoji_captions",
    "emoji_table",
    "image_folder",
    "image_stream",
    "load_emoji",
]
