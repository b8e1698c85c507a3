"""KerasHub's presets, from folders in its own format: what its models give, in the number format that is asked for."""

import keras
import numpy as np
import pytest

from unet_keras.text import bert, clip, t5, vocabulary

LENGTH, DIMS = 9, {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 24}
PROMPTS = ["a red dog", ""]


def shaken(model):
    """Give norms and biases, which start at one and zero, other values."""
    noise = np.random.default_rng(0)
    model.set_weights([w + 0.1 * noise.normal(size=w.shape) for w in model.get_weights()])
    return model


def made(kind, files):
    """Make a small model and its tokenizer; give them, the encoder's class, and the model's inputs for rows."""
    import keras_hub

    models = keras_hub.models
    if kind == "bert":
        model = models.BertBackbone(40, max_sequence_length=12, **DIMS)
        return model, bert._tokenizer(files), bert.BertEncoder, ("token_ids", "segment_ids", "padding_mask")
    if kind == "t5":
        names = ("encoder_token_ids", "encoder_padding_mask", "decoder_token_ids", "decoder_padding_mask")
        return models.T5Backbone(140, **DIMS), t5._tokenizer(files), t5.T5Encoder, names
    vision = models.CLIPVisionEncoder(2, 8, 1, 1, 8, image_shape=(4, 4, 3))
    text = models.CLIPTextEncoder(530, 16, 16, 1, 2, 24, max_sequence_length=12)
    return models.CLIPBackbone(vision, text, 8), clip._tokenizer(files), clip.ClipEncoder, ("token_ids",)


def run(model, names, tokens, real):
    """Give the sequence that a model makes of rows; of a CLIP its text half's."""
    given = {name: real if "mask" in name else tokens * ("segment" not in name) for name in names}
    outputs = getattr(model, "text_encoder", model).predict_on_batch(given)
    sequences = ("sequence_output", "encoder_sequence_output")
    return next(outputs[name] for name in sequences if name in outputs) if isinstance(outputs, dict) else outputs


@pytest.fixture
def preset(request, tmp_path):
    """A preset's folder, the encoder's class, its model and the names of that one's inputs."""
    model, tokenizer, encoder, names = made(request.param, request.getfixturevalue(f"{request.param}_files"))
    shaken(model).save_to_preset(tmp_path)
    tokenizer.save_to_preset(tmp_path)
    return str(tmp_path), encoder, model, names


@pytest.mark.filterwarnings("ignore:unclosed file .*vocabulary.spm:ResourceWarning")  # left open by KerasHub
@pytest.mark.filterwarnings("ignore:(?s).*passed an input with a mask attached")  # by KerasHub's T5, when called itself
@pytest.mark.parametrize("preset", ["bert", "t5", "clip"], indirect=True)
def test_a_preset_gives_what_its_model_gives(preset):
    folder, encoder, model, names = preset
    keras.config.set_dtype_policy("mixed_float16")
    read = encoder.from_preset(folder, length=LENGTH)
    assert {weight.dtype for weight in read.model.weights} == {"float32"}
    tokens, real = vocabulary.rows(read.vocabulary, PROMPTS, LENGTH)
    wanted = run(model, names, tokens, real.astype("int32"))
    assert np.abs(read(PROMPTS)["context"] - wanted).max() < 1e-4


@pytest.mark.parametrize("preset", ["clip"], indirect=True)
def test_clip_in_another_number_format_with_its_projection(preset):
    folder, encoder, model, names = preset
    read = encoder.from_preset(folder, length=LENGTH, pooled="projected", dtype="bfloat16")
    assert {weight.dtype for weight in read.model.weights} == {"bfloat16"}
    tokens, real = vocabulary.rows(read.vocabulary, PROMPTS, LENGTH)
    last = run(model, names, tokens, real)[np.arange(len(PROMPTS)), real.sum(axis=1) - 1]
    wanted = last @ keras.ops.convert_to_numpy(model.text_projection.kernel)
    assert np.abs(read(PROMPTS)["pooled"] - wanted).max() < 0.05 * np.abs(wanted).max()


@pytest.mark.parametrize("preset", ["bert"], indirect=True)
def test_saving_holds_the_handle(preset):
    folder, encoder, *_ = preset
    read = encoder.from_preset(folder, length=LENGTH)
    # KerasHub reads a vocabulary by its path in no other mode.
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(read), safe_mode=False)
    assert again.source == {"handle": folder, "dtype": "float32"} and again.fingerprint == read.fingerprint
