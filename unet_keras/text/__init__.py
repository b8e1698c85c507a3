"""Prompts to conditions: a small encoder to train along with the network, and frozen pretrained ones."""

from unet_keras.text.bert import BertEncoder
from unet_keras.text.cache import cached
from unet_keras.text.clip import ClipEncoder
from unet_keras.text.t5 import T5Encoder
from unet_keras.text.tokens import TokenEncoder

__all__ = ["BertEncoder", "ClipEncoder", "T5Encoder", "TokenEncoder", "cached"]
