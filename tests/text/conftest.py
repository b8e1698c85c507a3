"""Tokenizers with a vocabulary of a few dozen pieces, in the files that their models were published with."""

import io

import pytest

CAPTIONS = ["a red heart on white", "two cats and a dog", "the quick brown fox jumps over the lazy dog"]


@pytest.fixture(scope="session")
def clip_files(tmp_path_factory):
    """vocab.json and merges.txt with a few merges."""
    from .helpers import write_clip_tokenizer

    merges = ["d o", "do g</w>", "c a", "ca t", "cat s</w>", "r e", "re d</w>"]
    return write_clip_tokenizer(tmp_path_factory.mktemp("clip_files"), merges)


@pytest.fixture(scope="session")
def t5_files(tmp_path_factory):
    """A spiece.model."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder, model = tmp_path_factory.mktemp("t5_files"), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS * 20), model_writer=model, vocab_size=60, hard_vocab_limit=False,
        bos_id=-1, pad_id=0, eos_id=1, unk_id=2, pad_piece="<pad>", minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(model.getvalue())
    return folder


@pytest.fixture(scope="session")
def bert_files(tmp_path_factory):
    """A vocab.txt."""
    folder = tmp_path_factory.mktemp("bert_files")
    words = "a red heart on white two cat ##s and dog the do ##g caf ##e naive ! 42".split()
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join([*pieces, ""]), encoding="utf-8")
    return folder
