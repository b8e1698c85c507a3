"""A text encoder that is trained along with the U-Net, from nothing: words, embeddings, a few Transformer layers.

prompts -> {"tokens": (N, L)}           the encoder itself, plain Python: what the data and ``generate`` call
tokens (B, L) -> sequence (B, L, D)     its ``context``, layers that become part of the network
"""

import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import keras
import numpy as np
from keras import layers, ops

from unet_keras.checks import is_int
from unet_keras.text.encoder import check_prompts, warn_if_cut

serializable = keras.saving.register_keras_serializable("unet_keras")

_ACCENTS = re.compile("[\u0300-\u036f]")

PADDING, START = 0, 1
"""The tokens before the words': nothing, and the beginning of every prompt, which is all there is of an empty one."""


def split_words(text: str) -> list[str]:
    """Split a text into its words, lower case, without accents and punctuation: "Crème brûlée!" -> creme, brulee.

    Accents are those of Latin, Greek and Cyrillic. The marks of other scripts, vowels say, belong to their words.
    """
    # Taken apart before and after it is made lower case: parts may be capitals, and a capital's may be marks.
    lower = unicodedata.normalize("NFKD", text).lower()
    plain = _ACCENTS.sub("", unicodedata.normalize("NFKD", lower))
    marked = unicodedata.normalize("NFC", plain)
    return "".join(c if c.isalnum() or c == "_" or unicodedata.category(c)[0] == "M" else " " for c in marked).split()


@serializable
class TokenEncoder:
    """Number the words of prompts, and embed the numbers in layers that are trained with the U-Net.

        encoder = TokenEncoder.from_texts(captions)
        network = build_unet((32, 32, 3), context=encoder.context)
        model = DiffusionModel(network, encoder=encoder, drop=0.1)
        model.fit(images, captions)

    vocabulary    the words it knows; a word's place in the list makes its number
    length        tokens of a prompt, the start token included; longer prompts are cut, with a warning
    width, depth, heads    of the Transformer: channels, layers, attention heads (Vaswani et al. 2017, pre-norm)

    Raises ValueError for a vocabulary that is empty, holds a word twice or what ``split_words`` makes no word of, for
    options that are no whole numbers, and for heads that do not divide the width.
    """

    def __init__(
        self, vocabulary: Sequence[str], *, length: int = 16, width: int = 128, depth: int = 2, heads: int = 4
    ):
        if isinstance(vocabulary, str):
            raise ValueError(f"vocabulary must be a list of words, got the one {vocabulary!r}: write [{vocabulary!r}].")
        self.vocabulary = [str(word) for word in vocabulary]
        self.length, self.width, self.depth, self.heads = length, width, depth, heads
        self._numbers = {word: i for i, word in enumerate(self.vocabulary, START + 1)}
        if not self._numbers or len(self._numbers) < len(self.vocabulary):
            raise ValueError(f"vocabulary must hold words, each once, got {len(self.vocabulary)}: {vocabulary!r:.100}.")
        strange = [word for word in self.vocabulary if split_words(word) != [word]]
        if strange:
            raise ValueError(
                f"vocabulary must hold words as split_words gives them, lower case and each alone, got {strange[:3]}: "
                "use TokenEncoder.from_texts."
            )
        sizes = {"length": length, "depth": depth, "heads": heads, "width": width}
        least = {"length": 2, "depth": 0, "heads": 1, "width": 1}
        if not all(is_int(size, least[name]) for name, size in sizes.items()) or width % heads:
            raise ValueError(
                "length must be 2 or more, depth 0 or more, heads 1 or more and a divisor of width, all whole; got "
                + ", ".join(f"{name}={size}" for name, size in sizes.items())
                + "."
            )

    @classmethod
    def from_texts(cls, texts: Iterable[str], *, least: int = 1, **options) -> "TokenEncoder":
        """Know every word that occurs at least ``least`` times in the texts; ``options`` are the class's own."""
        texts = list(texts) if isinstance(texts, Iterator) else texts
        counts = Counter(word for text in check_prompts(texts) for word in split_words(text))
        if least > max(counts.values(), default=0):
            most = f"the most frequent occurs {max(counts.values())} times" if counts else "the texts hold none"
            raise ValueError(f"least={least} leaves no word: {most}.")
        return cls(sorted(word for word, count in counts.items() if count >= least), **options)

    def __call__(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Number the words: ``{"tokens": (N, length) int32}``, the start token first, padded with zeros.

        Words never seen in training mean nothing to the network: they are left out, with a warning that names them.
        """
        kept = self._known(prompts)
        tokens = np.full((len(kept), self.length), PADDING, "int32")
        for row, words in zip(tokens, kept, strict=True):
            row[: len(words) + 1] = [START, *(self._numbers[word] for word in words)]
        return {"tokens": tokens}

    def words(self, prompts: Sequence[str]) -> list[list[str]]:
        """Name what each of the ``length`` tokens stands for: a word, "" for the start and the padding."""
        return [["", *words] + [""] * (self.length - 1 - len(words)) for words in self._known(prompts)]

    def _known(self, prompts):
        prompts = check_prompts(prompts)
        split = [split_words(prompt) for prompt in prompts]
        unknown = sorted({word for words in split for word in words} - set(self._numbers))
        if unknown:
            warnings.warn(f"Words never seen in training are left out: {', '.join(unknown)}.", stacklevel=4)
        known = [[word for word in words if word in self._numbers] for words in split]
        kept = [words[: self.length - 1] for words in known]
        warn_if_cut([" ".join(words) for words in known], [len(words) for words in kept], self.length)
        return kept

    def context(self):
        """Give ``build_unet`` its context: the input ``tokens`` (B, L), the sequence (B, L, width), its mask."""
        tokens = keras.Input((self.length,), dtype="int32", name="tokens")
        known = len(self.vocabulary) + START + 1
        x, mask = TokenEmbedding(known, self.width, name="text_embedding")(tokens)
        for i in range(self.depth):
            x = _transformer_layer(x, mask, self.heads, name=f"text_layer{i}")
        return {"tokens": tokens}, layers.LayerNormalization(epsilon=1e-5, name="text_norm")(x), mask

    def get_config(self):
        return {key: getattr(self, key) for key in ("vocabulary", "length", "width", "depth", "heads")}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def _transformer_layer(x, mask, heads, *, name):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""
    width = x.shape[-1]
    y = layers.LayerNormalization(epsilon=1e-5, name=f"{name}_norm1")(x)
    attention = layers.MultiHeadAttention(heads, width // heads, name=f"{name}_attention")
    x = layers.Add(name=f"{name}_add1")([x, attention(y, y, value_mask=mask)])
    y = layers.LayerNormalization(epsilon=1e-5, name=f"{name}_norm2")(x)
    y = layers.Dense(4 * width, activation="gelu", name=f"{name}_feed1")(y)
    return layers.Add(name=f"{name}_add2")([x, layers.Dense(width, name=f"{name}_feed2")(y)])


@serializable
class TokenEmbedding(layers.Layer):
    """Embed tokens (B, L), add a learned vector for each place: (B, L, width), and the mask (B, L) of real tokens.

    ``input_dim``, as in Keras's Embedding, is how many tokens it knows: data are checked against it.
    """

    def __init__(self, tokens, width, **kwargs):
        super().__init__(**kwargs)
        self.tokens, self.width = tokens, width
        self.input_dim = tokens

    def build(self, tokens_shape):
        spread = keras.initializers.RandomNormal(stddev=0.02)
        self.embeddings = self.add_weight(shape=(self.tokens, self.width), initializer=spread, name="embeddings")
        self.places = self.add_weight(shape=(tokens_shape[-1], self.width), initializer=spread, name="places")

    def call(self, tokens):
        return ops.take(self.embeddings, tokens, axis=0) + self.places, ops.not_equal(tokens, PADDING)

    def compute_output_spec(self, tokens):
        embedded = keras.KerasTensor((*tokens.shape, self.width), dtype=self.compute_dtype)
        return embedded, keras.KerasTensor(tokens.shape, dtype="bool")

    def get_config(self):
        return {**super().get_config(), "tokens": self.tokens, "width": self.width}
