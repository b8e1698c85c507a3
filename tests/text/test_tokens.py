"""The trainable encoder: words to tokens, and the layers that read them."""

import keras
import numpy as np
import pytest
from keras import ops

from unet_keras import TokenEncoder, build_unet, emoji_table, from_preset
from unet_keras.text.tokens import split_words

TEXTS = ["red heart", "blue circle", "smiling face with heart-eyes", "Crème brûlée!"]


def encoder(**options):
    return TokenEncoder.from_texts(TEXTS, **{"length": 5, "width": 8, "heads": 2, "depth": 1, **options})


def tokens(*prompts, **options):
    return encoder(**options)(list(prompts))["tokens"].tolist()


def test_words_are_numbered_in_the_order_of_the_alphabet_after_padding_and_start():
    known = ["blue", "brulee", "circle", "creme", "eyes", "face", "heart", "red", "smiling", "with"]
    assert encoder().vocabulary == known
    assert tokens("red heart", "") == [[1, 9, 8, 0, 0], [1, 0, 0, 0, 0]]


def test_case_accents_and_punctuation_do_not_matter():
    assert tokens("RED heart") == tokens("red, heart!") == tokens("réd-heart")


def test_words_of_other_scripts_are_whole_and_keep_their_marks():
    texts = {
        "हिन्दी लाल दिल": 3,  # vowel signs, which are no letters
        "หัวใจสีแดง": 1,
        "がらす からす": 2,  # another word without its voiced mark
        "Ёжик йод": 2,
        "ΆΛΦΑ": 1,
    }
    for text, count in texts.items():
        words = split_words(text)
        assert len(words) == count == len(set(words)) and all(split_words(word) == [word] for word in words)
    texts = ["Lego™ bricks", "№ 5", "20 ℃", "ℝ and ℕ"]
    assert TokenEncoder.from_texts(texts).vocabulary == sorted({word for text in texts for word in split_words(text)})
    assert split_words("Lego™ bricks") == ["legotm", "bricks"]
    assert split_words("が") != split_words("か") and split_words("हिन्दी") == ["हिन्दी"]
    assert split_words("ﬁne Ünï_x, don't") == ["fine", "uni_x", "don", "t"]


@pytest.mark.once
def test_the_shipped_vocabulary_is_that_of_the_emoji():
    table = emoji_table()
    known = table.splits == "train"
    texts = [*table.captions[known], *table.tags[known], "a an the noto flat"]
    assert from_preset("emoji-32").encoder.vocabulary == TokenEncoder.from_texts(t for t in texts).vocabulary


def test_an_encoding_is_an_array_of_int32():
    found = encoder()(np.array(["red", "blue"]))
    assert set(found) == {"tokens"} and found["tokens"].dtype == "int32" and found["tokens"].shape == (2, 5)


def test_words_name_the_places_of_the_context():
    assert encoder().words(["Red heart"]) == [["", "red", "heart", "", ""]]


def test_unknown_words_are_left_out_with_a_warning_that_names_them():
    with pytest.warns(UserWarning, match="left out: purple, zebra"):
        assert tokens("zebra red purple heart") == tokens("red heart")


def test_long_prompts_are_cut_with_a_warning_that_shows_the_cut():
    with pytest.warns(UserWarning, match="'blue circle' of 'red heart with eyes blue circle'"):
        assert tokens("red heart with eyes blue circle") == tokens("red heart with eyes")


def test_rare_words_may_be_left_out_of_the_vocabulary():
    assert TokenEncoder.from_texts([*TEXTS, "red"], least=2).vocabulary == ["heart", "red"]
    for texts, message in (
        ([*TEXTS, "red"], "least=9 leaves no word: the most frequent occurs 2 times"),
        ([""], "hold none"),
    ):
        with pytest.raises(ValueError, match=message):
            TokenEncoder.from_texts(texts, least=9)


@pytest.mark.parametrize(
    "prompts, message",
    [([], "none"), ("red heart", r"\['red heart'\]"), (["red", 3], "entry 1 is int"), ([None], "NoneType"), (3, "int")],
)
def test_what_is_no_list_of_texts_is_refused(prompts, message):
    for asked in (encoder(), encoder().words, TokenEncoder.from_texts):
        with pytest.raises(ValueError, match=message):
            asked(prompts)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"vocabulary": []}, "vocabulary"),
        ({"vocabulary": ["a", "a"]}, "each once"),
        ({"length": 1}, "length must be 2"),
        ({"depth": -1}, "depth=-1"),
        ({"heads": 3}, "heads=3, width=128"),
        ({"heads": 0}, "heads=0"),
        ({"heads": -4}, "heads=-4"),
        ({"width": 0}, "width=0"),
        ({"length": 16.5}, "length=16.5"),
        ({"vocabulary": "red"}, r"write \['red'\]"),
        ({"vocabulary": ["red", "Blue"]}, r"got \['Blue'\]"),
        ({"vocabulary": ["red apple"]}, "from_texts"),
    ],
)
def test_options_that_make_no_encoder_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TokenEncoder(**{"vocabulary": ["a"], **options})


def test_an_encoder_survives_its_configuration():
    back = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(encoder()))
    assert back.get_config() == encoder().get_config()
    np.testing.assert_array_equal(back(TEXTS[:2])["tokens"], encoder()(TEXTS[:2])["tokens"])


# ---- the layers -----------------------------------------------------------------------------------------------------


def reader(**options):
    """The encoder's layers as a model of their own, with weights that are not small."""
    keras.utils.set_random_seed(0)
    inputs, sequence, mask = encoder(**options).context()
    model = keras.Model(inputs, [sequence, mask])
    rng = np.random.default_rng(0)
    model.set_weights([w + 0.3 * rng.standard_normal(w.shape) for w in model.get_weights()])
    return model


def read(model, rows):
    sequence, mask = model({"tokens": np.array(rows, "int32")})
    return ops.convert_to_numpy(sequence), ops.convert_to_numpy(mask)


def test_the_layers_give_a_sequence_and_which_of_it_counts():
    sequence, mask = read(reader(), tokens("red heart", ""))
    assert sequence.shape == (2, 5, 8) and mask.tolist() == [[True] * 3 + [False] * 2, [True] + [False] * 4]


def test_padding_changes_nothing_of_what_counts():
    """Other weights for the padding's embedding: the words' places must not see them."""
    model = reader(depth=2)
    before, mask = read(model, tokens("red heart"))
    embedding = model.get_layer("text_embedding")
    table = ops.convert_to_numpy(embedding.embeddings).copy()
    table[0] = np.random.default_rng(1).standard_normal(8)
    embedding.embeddings.assign(table)
    after, _ = read(model, tokens("red heart"))
    np.testing.assert_allclose(after[mask], before[mask], atol=1e-5)
    assert np.abs(after[~mask] - before[~mask]).max() > 0.1


def test_the_order_of_words_counts():
    model = reader()
    (one,), (other,) = (read(model, rows)[0] for rows in (tokens("red heart"), tokens("heart red")))
    assert np.abs(one - other).max() > 0.01


def test_attention_is_that_of_torch():
    """One layer against torch's own Transformer layer, the weights carried over."""
    torch = pytest.importorskip("torch")
    model = reader()
    sequence, mask = read(model, tokens("red heart", "blue"))
    given = {w.path: ops.convert_to_numpy(w) for w in model.weights}
    layer = torch.nn.TransformerEncoderLayer(8, 2, 32, 0.0, "gelu", norm_first=True, batch_first=True).eval()
    attention = "text_layer0_attention/"
    qkv = [given[f"{attention}{part}/kernel"].reshape(8, 8).T for part in ("query", "key", "value")]
    bias = [given[f"{attention}{part}/bias"].ravel() for part in ("query", "key", "value")]
    state = {
        "self_attn.in_proj_weight": np.concatenate(qkv),
        "self_attn.in_proj_bias": np.concatenate(bias),
        "self_attn.out_proj.weight": given[f"{attention}attention_output/kernel"].reshape(8, 8).T,
        "self_attn.out_proj.bias": given[f"{attention}attention_output/bias"],
        "linear1.weight": given["text_layer0_feed1/kernel"].T,
        "linear1.bias": given["text_layer0_feed1/bias"],
        "linear2.weight": given["text_layer0_feed2/kernel"].T,
        "linear2.bias": given["text_layer0_feed2/bias"],
    }
    for i in (1, 2):
        state[f"norm{i}.weight"] = given[f"text_layer0_norm{i}/gamma"]
        state[f"norm{i}.bias"] = given[f"text_layer0_norm{i}/beta"]
    layer.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    rows = np.array(tokens("red heart", "blue"))
    x = given["text_embedding/embeddings"][rows] + given["text_embedding/places"]
    with torch.no_grad():
        y = layer(torch.tensor(x), src_key_padding_mask=torch.tensor(~mask)).numpy()
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    y = y * given["text_norm/gamma"] + given["text_norm/beta"]
    np.testing.assert_allclose(sequence[mask], y[mask], atol=1e-4)


def test_a_network_that_reads_tokens_survives_a_file(tmp_path):
    network = build_unet((8, 8, 3), (8,), context=encoder().context, bridge=None)
    network.save(tmp_path / "reader.keras")
    back = keras.saving.load_model(tmp_path / "reader.keras")
    inputs = {
        "image": np.ones((2, 8, 8, 3), "float32"),
        "timestep": np.array([3.0, 4.0], "float32"),
        "tokens": np.array(tokens("red", "blue circle"), "int32"),
    }
    outputs = [ops.convert_to_numpy(net(inputs)) for net in (network, back)]
    np.testing.assert_allclose(*outputs, atol=1e-6)
    assert np.ptp(outputs[0]) > 0
