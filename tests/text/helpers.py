"""What the tests of the pretrained encoders share: random models as transformers saves them, and its tokenizers."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

torch = pytest.importorskip("torch")
pytest.importorskip("keras_hub")
transformers = pytest.importorskip("transformers")

# Upper case, accents, an emoji, digits, an empty prompt, a special token spelt out, and one that fills the row.
PROMPTS = ["A red Heart", "", "naïve café l'été 😀 42!", "dog " * 4, "two  cats\tand a dog"]


def tokens_of(tokenizer, prompts, length):
    """Give what transformers' tokenizer makes of prompts: input_ids and attention_mask, (N, length)."""
    rows = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return {name: rows[name] for name in ("input_ids", "attention_mask")}


def shake(model):
    """Give every weight seeded noise: norms and biases start at one and zero, where a mix-up would not show."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def largest(a, b):
    return np.abs(np.asarray(a, "float64") - np.asarray(b, "float64")).max()


# ---- tokenizers -------------------------------------------------------------------------------------------------


def byte_letters():
    """The letters that stand for the 256 bytes in byte-level BPE: the printable as themselves, others from 256 up."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def open_clip_merges():
    """The merges of CLIP's own vocabulary, which open_clip_torch carries."""
    import gzip

    found = importlib.util.find_spec("open_clip")
    if found is None:
        return None
    path = Path(found.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    return gzip.decompress(path.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]


def write_clip_tokenizer(folder, merges):
    letters = byte_letters()
    pieces = letters + [letter + "</w>" for letter in letters] + ["".join(merge.split()) for merge in merges]
    vocabulary = {piece: n for n, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    return folder


def both_forms(files, kind, folder):
    """Give a tokenizer of transformers from the older files, and a folder with the tokenizer.json that it saves."""
    tokenizer = kind.from_pretrained(files)
    tokenizer.save_pretrained(folder)
    (Path(folder) / "tokenizer.json").stat()
    return tokenizer
