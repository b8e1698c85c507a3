"""Files from strangers: nothing in them is run, nothing leaves its folder, no size is believed."""

import json
import struct
import sys
import zipfile

import keras
import numpy as np
import pytest
from safetensors.numpy import save

from unet_keras import DiffusionModel, build_unet, cli, from_preset, save_preset
from unet_keras.files import JSON_LIMIT, Tensors, read_json
from unet_keras.nn.abstract import shapes_only
from unet_keras.zoo.diffusers.config import complete
from unet_keras.zoo.outline import outline

UNET = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "block_out_channels": [8],
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "norm_num_groups": 4,
}


@pytest.fixture(scope="module")
def model():
    made = DiffusionModel(build_unet((8, 8, 3), (4,)), ema=None, seed=0)
    made.compile("sgd")
    return made


@pytest.fixture
def preset(model, tmp_path):
    return save_preset(model, tmp_path / "preset")


@pytest.fixture
def repacked(model, tmp_path):
    """Write a ``.keras`` file anew with other members; returns its path."""

    def repacked(change=lambda config: None, compression=zipfile.ZIP_STORED, **more):
        model.save(tmp_path / "good.keras")
        with zipfile.ZipFile(tmp_path / "good.keras") as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        config = json.loads(parts["config.json"])
        change(config)
        parts |= {"config.json": json.dumps(config), **more}
        with zipfile.ZipFile(tmp_path / "bad.keras", "w", compression) as archive:
            for name, content in parts.items():
                archive.writestr(name, content)
        return tmp_path / "bad.keras"

    return repacked


def with_layer(layer):
    """Make a change of a model's configuration that puts a layer in the place of the network's first activation."""

    def change(config):
        layers = config["config"]["network"]["config"]["layers"]
        place = next(i for i, each in enumerate(layers) if each["class_name"] not in ("InputLayer",))
        layers[place] |= layer

    return change


# ---- nothing is run -------------------------------------------------------------------------------------------------


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module that leaves a mark when it is imported."""
    (tmp_path / "lib").mkdir()
    mark = tmp_path / "was_run"
    (tmp_path / "lib/evil_layers.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Evil: pass\n")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    yield mark
    sys.modules.pop("evil_layers", None)


def test_a_module_that_a_file_names_is_not_imported(repacked, preset, evil):
    named = {"module": "evil_layers", "class_name": "Evil", "config": {}, "registered_name": "Evil"}
    with pytest.raises(ValueError, match="bad.keras: cannot be loaded, TypeError: Could not locate class 'Evil'"):
        from_preset(repacked(with_layer(named)))
    config = json.loads((preset / "config.json").read_text())
    with_layer(named)(config["model"])
    (preset / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="config.json: cannot be loaded, TypeError: Could not locate class 'Evil'"):
        from_preset(preset)
    assert not evil.exists() and "evil_layers" not in sys.modules


@pytest.mark.parametrize("where", ["layer", "optimizer", "loss"])
def test_code_that_a_file_holds_is_not_run(repacked, tmp_path, where):
    mark = str(tmp_path / "was_run")

    def leave_mark(x):
        open(mark, "w").close()
        return x

    code = keras.src.utils.python_utils.func_dump(eval(f"lambda x: [open({mark!r}, 'w').close(), x][1]"))
    function = {"class_name": "__lambda__", "config": {"value": code}}
    named = {"module": "keras.layers", "class_name": "Lambda", "registered_name": None}
    layer = {**named, "config": {"name": "evil", "function": function}}

    def into_compiled(config):
        config["compile_config"] = {"optimizer": "sgd"} | {where: function}

    with pytest.raises(ValueError, match="bad.keras: .*(lambda|Lambda)"):
        from_preset(repacked(with_layer(layer) if where == "layer" else into_compiled))
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("ending", ["bin", "ckpt", "pt", "pth", "pkl"])
def test_pickles_are_refused_with_the_remedy(tmp_path, ending):
    (tmp_path / f"a.{ending}").write_bytes(b"cos\nsystem\n(S'touch was_run'\ntR.")
    with pytest.raises(ValueError, match=rf"a.{ending} is a pickle.*save it as safetensors"):
        from_preset(tmp_path / f"a.{ending}")


# ---- nothing leaves its folder --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/../../escaped", "..\\escaped"])
def test_archives_do_not_unpack_beyond_themselves(repacked, tmp_path, name):
    path = repacked(**{name: b"x"})
    with pytest.raises(ValueError, match="bad.keras holds .*escaped', which leads out of it"):
        from_preset(path)
    assert not (tmp_path.parent / "escaped").exists()


@pytest.mark.parametrize(
    "named", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", 3, ["x"], None]
)
def test_an_index_names_files_of_its_own_folder_alone(tmp_path, named):
    (tmp_path / "in").mkdir()
    (tmp_path / "model.safetensors").write_bytes(save({"a": np.ones(2)}))
    (tmp_path / "in/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": named}}))
    with pytest.raises(ValueError, match=r"index.json (names files that are not there|must hold a weight_map)"):
        Tensors(tmp_path / "in")


@pytest.mark.parametrize(("listed", "odd"), [("a", "b"), ("abc", "c")])
def test_an_index_that_its_shards_do_not_bear_out_is_refused(tmp_path, listed, odd):
    (tmp_path / "one.safetensors").write_bytes(save({"a": np.ones(2), "b": np.ones(2)}))
    index = {"weight_map": dict.fromkeys(listed, "one.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"the index and its shards disagree on 1 tensors: {odd}"):
        Tensors(tmp_path)


# ---- no size is believed --------------------------------------------------------------------------------------------


def test_archives_that_unpack_to_far_more_are_refused(repacked):
    with pytest.raises(ValueError, match="bad.keras holds 'zeros', packed to less than 1/100"):
        from_preset(repacked(compression=zipfile.ZIP_DEFLATED, zeros=bytes(10**7)))


def test_json_that_is_too_large_or_too_deep(tmp_path):
    file = tmp_path / "a.json"
    for content in (b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b"{", b"1" * 10_000):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="a.json (is no JSON|must hold an object)"):
            read_json(file)
    with file.open("wb") as empty:
        empty.truncate(JSON_LIMIT + 1)
    with pytest.raises(ValueError, match="a.json has 104,857,601 bytes"):
        read_json(file)


def test_a_configuration_larger_than_the_machine_takes_no_memory(preset, repacked):
    with shapes_only():
        network = keras.saving.serialize_keras_object(build_unet((8, 8, 3), (10**6,)))

    def wide(config):
        config["config"]["network"] = network

    config = json.loads((preset / "config.json").read_text())
    wide(config["model"])
    (preset / "config.json").write_text(json.dumps(config))
    for path in (preset, repacked(wide)):
        with pytest.raises(ValueError, match="would take .* GiB, .*asks for more than can be had"):
            from_preset(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_out_channels": [10**6]}, "would take .* GiB"),
        ({"block_out_channels": [10**9]}, "block_out_channels=.* must be a whole number"),
        ({"layers_per_block": 10**6}, "1,000,000 blocks are more"),
        ({"block_out_channels": [8] * 3000}, "6,000 blocks are more"),
        ({"block_out_channels": [-8]}, "of 1 to"),
        ({"block_out_channels": []}, "of 1 to"),
        ({"block_out_channels": "8"}, "of 1 to"),
        ({"in_channels": True}, "in_channels=True"),
        ({"in_channels": None}, "in_channels=None"),
        ({"norm_eps": float("nan")}, "norm_eps=nan"),
        ({"dropout": "x"}, "dropout='x'"),
        ({"down_block_types": [3]}, "must be the names of blocks"),
        ({"norm_num_groups": 3}, "config.json"),
    ],
)
def test_diffusers_numbers_are_checked(tmp_path, fields, message):
    (tmp_path / "config.json").write_text(json.dumps(UNET | fields))
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    with pytest.raises(ValueError, match=message):
        from_preset(tmp_path, weights=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_train_timesteps": 10**12}, "num_train_timesteps=1000000000000"),
        ({"num_train_timesteps": 0}, "num_train_timesteps=0"),
        ({"beta_end": float("nan")}, "beta_end=nan"),
        ({"beta_start": -1}, "beta_start=-1"),
        ({"beta_schedule": ["linear"]}, "is not known"),
        ({"prediction_type": {}}, "is not known"),
        ({"trained_betas": ["x"]}, "could not convert"),
    ],
)
def test_schedulers_numbers_are_checked(tmp_path, fields, message):
    (tmp_path / "config.json").write_text(json.dumps(UNET))
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler"} | fields))
    with pytest.raises(ValueError, match=f"scheduler_config.json: .*{message}"):
        from_preset(tmp_path, weights=False)


def header(**tensors):
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text + bytes(16)


F4 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 2**60) + b"{}",
        header(a=F4 | {"data_offsets": [0, 2**40]}, b=F4),
        header(a=F4 | {"shape": [2**40]}),
        header(a=F4 | {"shape": [2**63, 2**63]}),
        header(a=F4 | {"shape": [-4]}),
        header(a=F4, b=F4),
        header(a=F4 | {"data_offsets": [16, 0]}),
        header(a=F4 | {"dtype": "object"}),
        header(a=F4) + b"more",
    ],
)
def test_safetensors_that_lie_are_refused(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="model.safetensors cannot be read"):
        Tensors(tmp_path)


def test_arrays_that_claim_to_be_larger_than_they_are(preset):
    with zipfile.ZipFile(preset / "weights.npz") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = next(iter(parts))
    text = "{'descr': '<f2', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117) + "\n"
    parts[name] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()
    with zipfile.ZipFile(preset / "weights.npz", "w") as archive:
        for each, content in parts.items():
            archive.writestr(each, content)
    with pytest.raises(ValueError, match="of another shape"):
        from_preset(preset)


# ---- every error names its file --------------------------------------------------------------------------------------


def test_what_is_no_diffusion_model_is_refused(tmp_path):
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "other.keras")
    with pytest.raises(ValueError, match="other.keras must hold a DiffusionModel, got Sequential"):
        from_preset(tmp_path / "other.keras")
    (tmp_path / "cut.keras").write_bytes((tmp_path / "other.keras").read_bytes()[:-50])
    with pytest.raises(ValueError, match="cut.keras is no .keras file"):
        from_preset(tmp_path / "cut.keras")


@pytest.mark.parametrize("content", ["{}", '{"model": 3}', '{"model": {}, "about": 3}', "[]", "{"])
def test_presets_that_are_none(preset, content):
    (preset / "config.json").write_text(content)
    with pytest.raises(ValueError, match="config.json"):
        from_preset(preset)


def test_the_command_line_tells_what_the_system_refuses(tmp_path, preset, capsys):
    (tmp_path / "file").write_text("x")
    assert cli.main(["export", str(preset), str(tmp_path / "file" / "inner")]) == 2
    assert "unet-keras: " in capsys.readouterr().err


# ---- any value, anywhere (hypothesis) --------------------------------------------------------------------------------


def test_any_value_in_any_field_is_honoured_or_refused():
    hypothesis = pytest.importorskip("hypothesis")
    from hypothesis import strategies as st

    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text("ab/.", max_size=3)
    values = st.recursive(
        plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
    )
    fields = st.sampled_from(sorted(complete(UNET)))

    @hypothesis.settings(max_examples=100, deadline=None, database=None, derandomize=True)
    @hypothesis.given(st.dictionaries(fields, values, min_size=1, max_size=2))
    def check(changed):
        try:
            full = complete(UNET | changed)
        except ValueError as error:
            assert type(error) is ValueError and str(error)
        else:
            assert full.keys() == complete(UNET).keys()

    check()


def test_any_bytes_in_the_place_of_others_are_read_or_refused(tmp_path):
    hypothesis = pytest.importorskip("hypothesis")
    from hypothesis import strategies as st

    good = save({"a": np.ones((2, 3), "float32"), "b": np.ones(4, "float16")})

    @hypothesis.settings(max_examples=150, deadline=None, database=None, derandomize=True)
    @hypothesis.given(st.integers(0, len(good)), st.integers(0, 8), st.binary(max_size=8))
    def check(at, length, piece):
        (tmp_path / "model.safetensors").write_bytes(good[:at] + piece + good[at + length :])
        try:
            tensors = Tensors(tmp_path)
            assert sum(tensors[name].size for name in tensors) <= len(good)
        except ValueError as error:
            assert "model.safetensors" in str(error)

    check()


def test_outlines_take_no_memory_for_what_is_too_large(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(UNET | {"block_out_channels": [10**6]}))
    assert outline(tmp_path).count_params() > 10**13
