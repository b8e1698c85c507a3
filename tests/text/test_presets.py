"""KerasHub's presets, from folders in its own format: what its models give, in the number format that is asked for."""

import keras
import numpy as np
import pytest
from keras import ops

from unet_keras.text import bert, clip, t5, vocabulary

LENGTH, DIMS = 9, {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 24}
PROMPTS = ["a red dog", ""]


def shaken(model):
    """Give norms and biases, which start at one and zero, other values."""
    noise = np.random.default_rng(0)
    model.set_weights([w + 0.1 * noise.normal(size=w.shape) for w in model.get_weights()])
    return model


def made(kind, files):
    """Make a small model and its tokenizer; give them, the encoder's class, and what the model gives for rows."""
    import keras_hub

    models = keras_hub.models
    if kind == "bert":
        model = models.BertBackbone(40, max_sequence_length=12, **DIMS)
        call = lambda ids, real: model({"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": real})  # noqa: E731
        return model, bert._tokenizer(files), bert.BertEncoder, lambda *rows: call(*rows)["sequence_output"]
    if kind == "t5":
        model = models.T5Backbone(140, **DIMS)
        names = ("encoder_token_ids", "encoder_padding_mask", "decoder_token_ids", "decoder_padding_mask")
        call = lambda ids, real: model(dict(zip(names, (ids, real, ids, real), strict=True)))  # noqa: E731
        return model, t5._tokenizer(files), t5.T5Encoder, lambda *rows: call(*rows)["encoder_sequence_output"]
    vision = models.CLIPVisionEncoder(2, 8, 1, 1, 8, image_shape=(4, 4, 3))
    text = models.CLIPTextEncoder(530, 16, 16, 2, 2, 24, max_sequence_length=12)
    model = models.CLIPBackbone(vision, text, 8)
    return model, clip._tokenizer(files), clip.ClipEncoder, lambda ids, real: text({"token_ids": ids})


@pytest.mark.filterwarnings("ignore:unclosed file .*vocabulary.spm:ResourceWarning")  # left open by KerasHub
@pytest.mark.filterwarnings("ignore:(?s).*passed an input with a mask attached")  # by KerasHub's T5, when called itself
@pytest.mark.parametrize("kind", ["bert", "t5", "clip"])
def test_a_preset_gives_what_its_model_gives(kind, request, tmp_path):
    model, tokenizer, encoder, call = made(kind, request.getfixturevalue(f"{kind}_files"))
    shaken(model).save_to_preset(tmp_path)
    tokenizer.save_to_preset(tmp_path)
    keras.config.set_dtype_policy("mixed_float16")
    read = encoder.from_preset(str(tmp_path), length=LENGTH)
    assert {weight.dtype for weight in read.model.weights} == {"float32"}
    tokens, real = vocabulary.rows(read.vocabulary, PROMPTS, LENGTH)
    wanted = ops.convert_to_numpy(call(tokens, real.astype("int32")))
    assert np.abs(read(PROMPTS)["context"] - wanted).max() < 1e-4
    # KerasHub reads a vocabulary by its path in no other mode.
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(read), safe_mode=False)
    assert again.source == {"handle": str(tmp_path), "dtype": "float32"} and again.fingerprint == read.fingerprint
    if kind == "clip":
        half = encoder.from_preset(str(tmp_path), length=LENGTH, pooled="projected", dtype="bfloat16")
        assert {weight.dtype for weight in half.model.weights} == {"bfloat16"}
        keras.config.set_dtype_policy("float32")
        wanted = ops.convert_to_numpy(model.get_text_embeddings(tokens))
        pooled = encoder.from_preset(str(tmp_path), length=LENGTH, pooled="projected")(PROMPTS)["pooled"]
        assert np.abs(pooled - wanted).max() < 1e-4
