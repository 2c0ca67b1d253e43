"""Train the tokenizers of the tiny models on the embedded sample: `python -m aira.models.tiny`."""

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PACKAGE = Path(__file__).parent
SAMPLE = PACKAGE.parent / "data" / "sample"
VOCABULARY = 2048
ENCODER_TOKENS = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}


def sample_texts() -> Iterator[str]:
    """All texts of the sample's training files, in a fixed order."""
    for file in sorted(SAMPLE.glob("*/train.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            yield from (value for value in json.loads(line).values() if isinstance(value, str))


def build(folder: Path, encoder: bool) -> None:
    """Train byte-level BPE and save it in the hub's format.

    Args:
        folder: where to.
        encoder: add BERT's special tokens, and put them around texts and pairs.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = list(ENCODER_TOKENS.values()) if encoder else []
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sample_texts(), trainer)
    names = {}
    if encoder:
        names = ENCODER_TOKENS
        ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
        )
    inputs = ["input_ids", *(["token_type_ids"] if encoder else []), "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names).save_pretrained(folder)


if __name__ == "__main__":
    build(PACKAGE / "tiny" / "causal", encoder=False)
    build(PACKAGE / "tiny" / "encoder", encoder=True)
