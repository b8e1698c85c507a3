import csv
import json

import pytest

from unet_keras.data import image_folder


def write_jsonl(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_csv(path, *rows, encoding="utf-8"):
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def read(tmp_path):
    """Read the pictures in tmp_path -> {name: caption}."""

    def read():
        dataset = image_folder(tmp_path, 8)
        names = [path.relative_to(tmp_path).as_posix() for path in dataset.paths]
        return dict(zip(names, dataset.captions, strict=True))

    return read


def test_no_metadata_no_captions(save):
    assert image_folder(save("a.png").parent, 8).captions is None


@pytest.mark.parametrize("column", ["text", "caption"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_captions_follow_their_images(save, tmp_path, read, kind, column):
    for name in ("a.png", "b.png", "sub/deep/c.png"):
        save(name)
    rows = [
        {"file_name": "sub/deep/c.png", column: "a sea, at night"},
        {"file_name": "./b.png", column: 'the "b" — é'},
        {"file_name": "sub/../a.png", column: ""},
    ]
    {"jsonl": write_jsonl, "csv": write_csv}[kind](tmp_path / f"metadata.{kind}", *rows)
    assert read() == {"a.png": "", "b.png": 'the "b" — é', "sub/deep/c.png": "a sea, at night"}


def test_text_comes_before_caption(save, tmp_path, read):
    save("a.png")
    write_jsonl(tmp_path / "metadata.jsonl", {"caption": "no", "file_name": "a.png", "text": "yes"})
    assert read() == {"a.png": "yes"}


def test_a_blank_text_gives_way_to_a_caption(save, tmp_path, read):
    save("a.png")
    write_jsonl(tmp_path / "metadata.jsonl", {"file_name": "a.png", "text": " ", "caption": "yes"})
    assert read() == {"a.png": "yes"}


def test_names_are_relative_to_their_metadata_file(save, tmp_path, read):
    for name in ("one/a.png", "two/a.png", "two/in/b.png"):
        save(name)
    write_jsonl(tmp_path / "one/metadata.jsonl", {"file_name": "a.png", "text": "first"})
    write_csv(
        tmp_path / "two/metadata.csv",
        {"file_name": "a.png", "text": "second"},
        {"file_name": "in/b.png", "text": "third"},
    )
    assert read() == {"one/a.png": "first", "two/a.png": "second", "two/in/b.png": "third"}


def test_blank_lines_and_a_byte_order_mark_are_passed_over(save, tmp_path, read):
    save("a.png")
    write_csv(tmp_path / "metadata.csv", {"file_name": "a.png", "text": "x"}, encoding="utf-8-sig")
    assert read() == {"a.png": "x"}
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.jsonl").write_text('\n{"file_name": "a.png", "text": "y"}\r\n\n')
    assert read() == {"a.png": "y"}


def test_images_without_a_row_are_left_out_with_one_warning(save, tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        save(name)
    (tmp_path / "d.png").write_bytes(b"no picture")
    rows = [{"file_name": name, "text": name} for name in ("b.png", "d.png")]
    write_jsonl(tmp_path / "metadata.jsonl", *rows)
    with pytest.warns(UserWarning) as caught:
        dataset = image_folder(tmp_path, 8)
    assert (dataset.captions, [path.name for path in dataset.paths]) == (["b.png"], ["b.png"])
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "left out 3 and kept 1" in message
    assert "a.png (no row in the metadata); c.png (no row in the metadata)" in message
    assert "d.png (UnidentifiedImageError" in message


@pytest.mark.parametrize("name", ["../outside.png", "sub/../../outside.png", "{outside}"])
def test_a_row_that_leads_out_of_the_folder(save, tmp_path, name):
    outside = save("outside.png")
    save("in/a.png")
    name = name.format(outside=outside)
    write_jsonl(tmp_path / "in/metadata.jsonl", {"file_name": name, "text": "x"})
    with pytest.raises(ValueError, match=r"metadata.jsonl, row 1: .*leads out of"):
        image_folder(tmp_path / "in", 8)


@pytest.mark.parametrize("name", ["gone.png", "", "notes.txt", ".hidden.png", "A.PNG", "x" * 5000])
def test_a_row_that_names_no_image(save, tmp_path, name):
    save("a.png")
    save(".hidden.png")
    (tmp_path / "notes.txt").write_text("x")
    write_csv(tmp_path / "metadata.csv", {"file_name": "a.png", "text": "x"}, {"file_name": name, "text": "y"})
    with pytest.raises(ValueError, match=r"metadata.csv, row 2: there is no image .*correct file_name"):
        image_folder(tmp_path, 8)


@pytest.mark.parametrize("name", ["a.png\0", "\0", "\ud800.png", "a\0/../../b.png"])
def test_a_row_that_names_what_no_file_is_called(save, tmp_path, name):
    save("a.png")
    write_jsonl(tmp_path / "metadata.jsonl", {"file_name": name, "text": "x"})
    with pytest.raises(ValueError, match=r"metadata.jsonl, row 1: "):
        image_folder(tmp_path, 8)


def test_an_image_captioned_twice(save, tmp_path):
    save("a.png")
    write_jsonl(tmp_path / "metadata.jsonl", *[{"file_name": "a.png", "text": "x"}] * 2)
    with pytest.raises(ValueError, match="row 2: a second caption for 'a.png'"):
        image_folder(tmp_path, 8)


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"file_name": "a.png"}, "'text' or 'caption'"),
        ({"file_name": "a.png", "text": None}, "'text' or 'caption'"),
        ({"file_name": "a.png", "text": 3}, "'text' or 'caption'"),
        ({"text": "x"}, "'file_name'"),
        (["a.png", "x"], "'file_name'"),
        (7, "'file_name'"),
    ],
)
def test_a_row_without_its_text(save, tmp_path, row, column):
    save("a.png")
    write_jsonl(tmp_path / "metadata.jsonl", row)
    with pytest.raises(ValueError, match=f"row 1: no text in the column {column}; received .*Add or rename"):
        image_folder(tmp_path, 8)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", b'{"file_name": "a.png", "te'),
        ("metadata.jsonl", b'{"file_name": "a.png", "text": "\xe9"}'),
        ("metadata.jsonl", b"[" * 100_000),
        ("metadata.csv", b"file_name,text\na.png,\xe9\n"),
        ("metadata.csv", b"file_name,text\na.png," + b"x" * 200_000),
    ],
)
def test_a_metadata_file_that_cannot_be_parsed(save, tmp_path, name, content):
    save("a.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: not (JSONL|CSV) in UTF-8: .*save it as such"):
        image_folder(tmp_path, 8)
