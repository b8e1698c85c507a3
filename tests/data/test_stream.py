"""A folder too large for memory: the batches of ``image_folder``, decoded by other processes, from any place on."""

import gc
import json
import os
import struct
import warnings
import zlib

import keras
import numpy as np
import pytest
from helpers import Cut

from unet_keras import Checkpoint, DiffusionModel, build_unet, by_label, image_folder, image_stream
from unet_keras.data import decoders
from unet_keras.data import stream as stream_module
from unet_keras.data.listing import Names


@pytest.fixture
def eleven(save, tmp_path):
    """Eleven images in two classes, with captions."""
    generator = np.random.default_rng(0)
    names = [f"{('cat', 'dog')[i % 2]}/{i:02d}.png" for i in range(11)]
    for name in names:
        save(name, generator.integers(0, 256, (8, 10, 3), dtype=np.uint8))
    rows = (json.dumps({"file_name": name, "text": f"a {name[:3]}"}) for name in names)
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    return tmp_path


def lengths(dataset):
    """Two conditions: the class, and how long the caption and the file's name are."""
    named = [[len(text), len(path.name)] for text, path in zip(dataset.captions, dataset.paths, strict=True)]
    return by_label(dataset) | {"lengths": np.array(named)}


def numbers(dataset):
    """A condition that tells every image from the others."""
    return {"number": np.arange(len(dataset.names))}


def assert_same(batch, other):
    keras.tree.map_structure(np.testing.assert_array_equal, batch, other)


@pytest.mark.parametrize("options", [{}, {"shuffle": False, "flip": False}, {"conditions": lengths, "seed": 3}])
@pytest.mark.parametrize("workers", [1, 3])
def test_the_batches_are_those_of_image_folder(eleven, options, workers):
    folder = image_folder(eleven, 8, batch_size=4, **options)
    stream = image_stream(eleven, 8, batch_size=4, workers=workers, **options)
    assert (stream.class_names, stream.captions, stream.paths) == (folder.class_names, folder.captions, folder.paths)
    assert stream.num_batches == len(folder) == 3 and stream.count == folder.count == 11
    for _ in range(3):
        for i in range(3):
            assert_same(stream[i], folder[i])
        folder.on_epoch_begin()
        folder.on_epoch_end()
        stream.on_epoch_begin()
        stream.on_epoch_end()
    with pytest.raises(IndexError):
        stream[3]


def epochs(stream, count):
    """The batches of the first epochs, one after the other."""
    found = []
    for epoch in range(count):
        stream.set_epoch(epoch)
        found += list(stream)
    return found


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_an_epoch_may_have_any_number_of_batches(eleven, steps):
    expected = epochs(image_stream(eleven, 8, batch_size=4, workers=1), 3)
    stream = image_stream(eleven, 8, batch_size=4, workers=1, steps=steps)
    assert stream.num_batches == steps
    for batch, other in zip(epochs(stream, 8 // steps), expected, strict=False):
        assert_same(batch, other)


def test_a_batch_does_not_depend_on_what_was_asked_before(eleven):
    stream = image_stream(eleven, 8, batch_size=4, workers=2)
    inorder = epochs(stream, 3)
    for k in (5, 0, 6, 6, 7, 2):
        stream.set_epoch(k // 3)
        assert_same(stream[k % 3], inorder[k])


@pytest.fixture
def asked(monkeypatch):
    """The indices of the images that streams have decoded, as they come."""
    found, submit = [], stream_module.ImageStream._submit
    monkeypatch.setattr(stream_module.ImageStream, "_submit", lambda self, i: found.append(int(i)) or submit(self, i))
    return found


def test_each_image_is_decoded_once_an_epoch(eleven, asked):
    epochs(image_stream(eleven, 8, batch_size=4, workers=1), 2)
    assert sorted(asked[:11]) == sorted(asked[11:22]) == list(range(11))
    assert len(asked) == 33  # and the three batches that lie ahead


def test_only_what_is_asked_for_in_order_is_read_ahead(eleven, asked):
    stream = image_stream(eleven, 8, batch_size=2, workers=1)
    for i in (5, 3, 0, 4):
        stream[i]
    assert len(asked) == 7  # the last batch has one image
    stream[5]
    assert len(asked) == 7 + 1 + 6


def test_the_parts_of_a_stream_are_those_of_the_folder(eleven):
    options = {"batch_size": 4, "workers": 1, "conditions": lengths, "seed": 3}
    streams, folders = image_stream(eleven, 8, **options).split(0.3), image_folder(eleven, 8, **options).split(0.3)
    assert [part.count for part in streams] == [8, 3]
    for stream, folder in zip(streams, folders, strict=True):
        assert (stream.paths, stream.captions) == (folder.paths, folder.captions)
        np.testing.assert_array_equal(stream.labels, folder.labels)
        for _ in range(2):
            assert len(stream) == len(folder)
            for batch, other in zip(stream, folder, strict=True):
                assert_same(batch, other)
            stream.on_epoch_begin()
            stream.on_epoch_end()
            folder.on_epoch_begin()
            folder.on_epoch_end()
    with pytest.raises(ValueError, match="share: 0.01 of 11 images makes 0"):
        image_stream(eleven, 8).split(0.01)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A model, compiled once for all, and the file of what it begins with."""
    made = DiffusionModel(build_unet((8, 8, 3), (4,)), seed=0)
    made.compile(keras.optimizers.Adam(1e-2))
    start = tmp_path_factory.mktemp("start") / "start.keras"
    made.save(start)
    return made, start


@pytest.fixture
def trained(begun, eleven, tmp_path):
    """Train for three epochs in a run folder, cut off after so many batches of each run; returns all variables."""
    model, start = begun

    def train(name, cuts=(), before=lambda: None, **options):
        model.load_weights(start)
        for cut in (*cuts, 10**6):
            stream = image_stream(eleven, 8, batch_size=2, workers=2, **options)
            checkpoint = Checkpoint(tmp_path / name, stream, every=1e9)
            place = checkpoint.resume(model)
            before()
            try:
                model.fit(stream, epochs=3, verbose=0, callbacks=[checkpoint, Cut(cut, checkpoint)], **place)
            except KeyboardInterrupt:
                model.network.set_weights([np.zeros(w.shape) for w in model.network.weights])
        assert int(model.optimizer.iterations) == 3 * len(stream)
        variables = [*model.weights, *model.optimizer.variables, *model._generators()]
        return [keras.ops.convert_to_numpy(v) for v in variables]

    return train


@pytest.mark.parametrize("steps", [None, 4])
def test_a_run_cut_off_in_the_middle_of_an_epoch_ends_as_one_that_never_was(trained, steps):
    whole, cut = trained("whole", steps=steps), trained("cut", cuts=[2, 5], steps=steps)
    for ours, theirs in zip(cut, whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_batches_before_the_cut_are_not_decoded_again(trained, monkeypatch):
    numbers, ask = [], stream_module.ImageStream._ask
    monkeypatch.setattr(stream_module.ImageStream, "_ask", lambda self, k: numbers.append(k) or ask(self, k))
    trained("run", cuts=[4], before=numbers.clear)
    assert sorted(set(numbers)) == list(range(4, 3 * 6 + stream_module.AHEAD))


def test_a_model_trains_on_it_as_on_the_images_in_that_order(eleven):
    def trained(batches, **options):
        keras.utils.set_random_seed(0)
        model = DiffusionModel(build_unet((8, 8, 3), (4,)), seed=0)
        model.compile(keras.optimizers.SGD(0.1))
        model.fit(batches, epochs=2, verbose=0, **options)
        return model.get_weights()

    stream = image_stream(eleven, 8, batch_size=4, workers=2)
    folder = image_folder(eleven, 8, batch_size=4)

    def by_hand():
        while True:
            yield from (folder[i] for i in range(3))
            folder.on_epoch_begin()
            folder.on_epoch_end()

    streamed, expected = trained(stream), trained(by_hand(), steps_per_epoch=3)
    for ours, theirs in zip(streamed, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_validation_sees_every_image_each_time(eleven):
    model = DiffusionModel(build_unet((8, 8, 3), (4,)), seed=0)
    model.compile("sgd")
    held = image_stream(eleven, 8, batch_size=4, workers=1, shuffle=False, flip=False)
    arrays = image_folder(eleven, 8, batch_size=4).images
    for _ in range(2):
        assert model.evaluate(held, verbose=0) == pytest.approx(
            model.evaluate(arrays, batch_size=4, verbose=0), rel=1e-5
        )


# ---- what is broken -------------------------------------------------------------------------------------------------


def png(width, height, data):
    """A PNG of any size whose pixels are ``data``, compressed."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"no picture", "UnidentifiedImageError"), (png(20_000, 20_000, b""), "DecompressionBombError"), (b"", "Unident")],
)
def test_the_next_image_takes_the_place_of_a_broken_one_and_it_is_named_once(eleven, content, reason):
    (eleven / "dog/05.png").write_bytes(content)
    options = {"shuffle": False, "flip": False, "conditions": numbers}
    stream = image_stream(eleven, 8, batch_size=11, workers=2, **options)
    broken = stream.names.index("dog/05.png")
    with pytest.warns(UserWarning, match=rf"the next image in the place of dog/05.png: {reason}") as caught:
        images, named = stream[0]
        stream.on_epoch_begin()
        stream.on_epoch_end()
        stream[0]
    assert len(caught) == 1
    np.testing.assert_array_equal(images[broken], images[broken + 1])
    assert named["number"][broken] == named["number"][broken + 1] == broken + 1


def test_a_folder_of_broken_images_is_no_endless_search(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"x")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="100 images in a row cannot be read.*Unidentified"):
        image_stream(tmp_path, 8, workers=1)[0]


@pytest.fixture
def processes(monkeypatch):
    """The processes that are started, as they come."""
    started = []
    monkeypatch.setattr(
        decoders, "_started", lambda *size, start=decoders._started: started.append(start(*size)) or started[-1]
    )
    return started


def test_a_process_that_ends_is_replaced(eleven, processes):
    stream = image_stream(eleven, 8, batch_size=4, workers=1)
    first = stream[0]
    for future in [f for _, _, futures in stream._ahead.values() for f in futures]:
        future.result()
    processes[0].kill()
    processes[0].wait()
    assert_same(stream[0], first)
    assert len(processes) == 2


def test_a_file_that_ends_the_process_is_broken(tmp_path, monkeypatch):
    (tmp_path / "crash.py").write_text("import os, sys; sys.stdin.buffer.read(4); os._exit(7)")
    monkeypatch.setattr(decoders.decode, "__file__", str(tmp_path / "crash.py"))
    crashing = decoders.Decoders(8, 8, 1)
    assert crashing.submit("a.png").result() == "the process that decoded it ended with 7"


def test_a_process_that_cannot_start_is_told(monkeypatch):
    monkeypatch.setattr(decoders.sys, "executable", "/gone")
    stuck = decoders.Decoders(8, 8, 1)
    with pytest.raises(FileNotFoundError, match="/gone"):
        stuck.submit("a.png").result()


def test_the_processes_end_with_the_stream(eleven, processes):
    stream = image_stream(eleven, 8, workers=2)
    stream[0]
    assert processes
    del stream
    gc.collect()
    assert [process.wait(timeout=60) for process in processes] == [0] * len(processes)


@pytest.mark.parametrize("reader", [image_folder, image_stream])
def test_more_than_there_is_memory_for_is_refused_before_it_is_taken(eleven, reader):
    with pytest.raises(ValueError, match="size: .* of 1000000 x 1000000 take .* GiB, and this machine has"):
        reader(eleven, 10**6)


def test_the_folder_itself_is_checked(tmp_path, save):
    with pytest.raises(ValueError, match="no image can be read"):
        image_stream(tmp_path, 8)
    with pytest.raises(ValueError, match="there is nothing at"):
        image_stream(tmp_path / "gone", 8)
    with pytest.raises(ValueError, match="workers must be .*got 0"):
        image_stream(tmp_path, 8, workers=0)
    with pytest.raises(ValueError, match="steps must be .*got 0"):
        image_stream(tmp_path, 8, steps=0)
    save("in/a.png")
    (tmp_path / "in/away.png").symlink_to(save("b.png"))
    with pytest.warns(UserWarning, match=r"image_stream left out 1 .*away.png \(a link that leads out") as caught:
        assert list(image_stream(tmp_path / "in", 8).names) == ["a.png"]
    assert caught[0].filename == __file__


# ---- names ----------------------------------------------------------------------------------------------------------


def test_names_are_a_sorted_sequence():
    given = [f"{i}/{'é' * (i % 5)}x\n.png" for i in range(1000)]
    names = Names(given)
    assert list(names) == sorted(given) and len(names) == 1000 and names[-1] == sorted(given)[-1]
    assert all(name in names for name in given)
    assert not any(name in names for name in ("", "x", given[0] + "\0", "\ud800", "ÿ" * 50))
    assert "a" not in Names([])
    with pytest.raises(IndexError):
        names[1000]


def test_names_take_their_bytes_alone():
    assert Names(f"{i:020d}.png" for i in range(10_000))._names.nbytes == 24 * 10_000


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on Unix")
def test_names_that_are_no_text_are_read(save, tmp_path):
    os.rename(save("a.png", 7), os.fsencode(tmp_path) + b"/\xff\n.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_stream(tmp_path, 8, workers=1)[0][0].max() == 7
