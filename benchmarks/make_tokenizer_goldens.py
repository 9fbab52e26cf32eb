"""Make tests/golden/tokenizers: small models of the public kinds, and the ids that the public tokenizers give odd texts.

    python benchmarks/make_tokenizer_goldens.py

It needs transformers, open_clip_torch, sentencepiece and tokenizers; the tests need none of the first two. The models are trained on the
texts beside them, so none is a real vocabulary but CLIP's, which open_clip ships.
"""

import argparse
import base64
import gzip
import json
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests/golden/tokenizers"
LENGTH = 64
TEXTS = (
    "", " ", "a photo of a dog", "A RED Apple's core!", "café, naïve, Ærø, ÅNGSTRÖM", "cafe\u0301 with a combining accent",
    "a dog 🐕 and a family 👨‍👩‍👧 🇩🇪", "一只狗在草地上", "狗 and 猫", "ねこ、カタカナ", "한국어 사진", "İstanbul ßtraße ΣΊΣΥΦΟΣ",
    "“curly” ‘quotes’ – dashes — and … dots", "Tom &amp; Jerry &lt;b&gt; &amp;amp;", "the ﬁrst oﬃce, ﬂat ½ №", "tabs\tand\nlines\r\n  and  spaces ",
    "non\u00a0breaking\u200b zero\ufeff width", "a_b under_scores __init__", "x" * 90, "dog " * 90, "...", "<|endoftext|> a dog", "a dog </s> a cat",
    "<eos>a<bos> <pad><unk>", "<end_of_text> a <start_of_text>", "[SEP] [CLS]", "12,345.67 km² 10⁵", "don't we'll I'm they've",
    "https://example.org/a?b=c&d=e", "IMG_0012.JPG", "مرحبا بالعالم", "नमस्ते", "a\x00b", "▁under▁ bar", "\u2028line", "ＦＵＬＬ　ｗｉｄｔｈ",
)  # fmt: skip


def corpus() -> list[str]:
    lines = [line for name in ("alt_texts", "alt_texts_held_out") for line in _lines(ROOT / f"tests/golden/{name}.tsv")]
    return [*lines, *TEXTS[2:20]]


def _lines(file: Path) -> list[str]:
    return [line.split("\t")[-1] for line in file.read_text("utf-8").splitlines() if line.strip()]


def siglip(folder: Path) -> dict:
    """SigLIP's: sentencepiece's unigrams with the ids of its c4_en model: pad 0, EOS 1, unknown 2, no BOS."""
    import sentencepiece
    from transformers import SiglipTokenizer

    model, texts = folder / "spiece.model", folder / "corpus.txt"
    texts.write_text("\n".join(" ".join(text.split()) for text in corpus()), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(texts), model_prefix=str(folder / "spiece"), model_type="unigram", vocab_size=500, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, num_threads=1, hard_vocab_limit=False, minloglevel=2, normalization_rule_name="nmt_nfkc",
    )  # fmt: skip
    (FOLDER / "siglip.model.gz").write_bytes(gzip.compress(model.read_bytes(), mtime=0))
    public = SiglipTokenizer(str(model))
    return _ids(public)


def siglip2(folder: Path) -> dict:
    """SigLIP 2's: Gemma's byte-fallback BPE, made by its own class around pieces trained here."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import Siglip2Tokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    trained = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    trained.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    signs = sorted({sign for text in corpus() for sign in text.lower() if sign.isalpha() and ord(sign) < 0x250})
    alphabet = [*special, *(f"<0x{n:02X}>" for n in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=alphabet, initial_alphabet=signs, limit_alphabet=len(signs)
    )
    trained.train_from_iterator(corpus(), trainer)
    model = json.loads(trained.to_str())["model"]
    public = Siglip2Tokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])
    public.save_pretrained(folder / "siglip2")
    kept = json.loads((folder / "siglip2/tokenizer.json").read_text("utf-8"))
    (FOLDER / "siglip2.json").write_text(json.dumps(kept, ensure_ascii=False, indent=0), "utf-8")
    return {"ids": [public(text, add_special_tokens=False)["input_ids"] for text in TEXTS]}


def unigram(folder: Path) -> dict:
    """SigLIP's pieces as a tokenizer.json, as open_clip reads them, with the model's own table of characters, which stands in the model only."""
    from transformers import T5Tokenizer
    from transformers.convert_slow_tokenizer import import_protobuf

    proto = import_protobuf().ModelProto()
    proto.ParseFromString(gzip.decompress((FOLDER / "siglip.model.gz").read_bytes()))
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    public = T5Tokenizer(vocab=pieces, extra_ids=0)
    public.save_pretrained(folder / "t5")
    kept = json.loads((folder / "t5/tokenizer.json").read_text("utf-8"))
    charsmap = base64.b64encode(proto.normalizer_spec.precompiled_charsmap).decode()
    from tokenizers import Tokenizer

    kept["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": charsmap}
    whole = Tokenizer.from_str(json.dumps(kept))
    kept["normalizer"]["precompiled_charsmap"] = ""
    (FOLDER / "unigram.json").write_text(json.dumps(kept, ensure_ascii=False), "utf-8")
    return {"ids": [whole.encode(text, add_special_tokens=False).ids for text in TEXTS]}


def clip() -> dict:
    """CLIP's, with the real vocabulary: [BOS] pieces [EOS] and zeros."""
    from open_clip import SimpleTokenizer

    public = SimpleTokenizer(context_length=LENGTH)
    return {"ids": [_cut(row) for row in public(list(TEXTS)).tolist()]}


def _cut(row: list[int]) -> list[int]:
    return row[: max((n + 1 for n, token in enumerate(row) if token), default=0)]


def _ids(public) -> dict:
    rows = public(list(TEXTS), padding="max_length", truncation=True, max_length=LENGTH)["input_ids"]
    return {"ids": rows}


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    FOLDER.mkdir(exist_ok=True)
    packages = ("transformers", "open_clip_torch", "sentencepiece", "tokenizers", "ftfy")
    found: dict = {"made_with": {name: version(name) for name in packages}, "length": LENGTH, "texts": list(TEXTS)}
    with tempfile.TemporaryDirectory() as folder:
        found["siglip"] = siglip(Path(folder))["ids"]
        found["siglip2"] = siglip2(Path(folder))["ids"]
        found["unigram"] = unigram(Path(folder))["ids"]
    found["clip"] = clip()["ids"]
    lines = [f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in found.items()]
    (FOLDER / "ids.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


if __name__ == "__main__":
    main()
