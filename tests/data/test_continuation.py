"""Every tokenizer and template: training goes on from the very prompt that generation makes."""

import json
import unicodedata
from functools import cache
from itertools import product

import numpy as np
import pytest
from datasets import Dataset
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from aira.data.module import DataModule
from aira.data.texts import BadRow
from aira.data.tokenize import encode, encode_scorer, tokenize, usable
from aira.inference.generation import prompt_ids

CORPUS = [
    "Hello, how are you? user: assistant: system: Who are you?\n\nI am an assistant.\n\n### Response:\n\nThe capital.",
    "Olá! Você é um assistente? Não, ação é reação; coração, maçã e pão.  Dois espaços.",
    "assistant: Hello\nassistant: Olá\n\nuser: Qual é a capital?\n\nassistant: A capital é Paris.\n\n",
    "日本語の答え 🙂 of course. (yes) - no\n1. one\n2. two",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = [f"<0x{i:02X}>" for i in range(256)]
FROM_BYTES = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)


def trained(model, pre_tokenizer, decoder, trainer, normalizer=None):
    made = Tokenizer(model)
    made.pre_tokenizer, made.decoder = pre_tokenizer, decoder
    if normalizer:
        made.normalizer = normalizer
    made.train_from_iterator(CORPUS, trainer)
    return made


def byte_level(*pre_tokenizer, normalizer=None):
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=SPECIAL, vocab_size=900, initial_alphabet=alphabet)
    return trained(
        models.BPE(), pre_tokenizers.Sequence([*pre_tokenizer]), decoders.ByteLevel(), trainer, normalizer=normalizer
    )


def metaspace(scheme):
    """As SentencePiece's BPE is converted; words are apart while it is trained alone."""
    model = models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    trainer = trainers.BpeTrainer(special_tokens=SPECIAL + BYTES, vocab_size=700)
    made = trained(model, pre_tokenizers.Metaspace(), FROM_BYTES, trainer)
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    return made


def llama2():
    """The space in front is put there by the normalizer, and after every special token too."""
    made = metaspace("never")
    made.pre_tokenizer = pre_tokenizers.Sequence([])
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return made


def unigram(scheme):
    trainer = trainers.UnigramTrainer(special_tokens=SPECIAL, vocab_size=180, unk_token="<unk>")
    spaces = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    made = trained(models.Unigram(), spaces, FROM_BYTES, trainer, normalizer=normalizers.NFKC())
    pieces = sorted(made.get_vocab(), key=made.get_vocab().get)
    known = [*((piece, -1.0 * rank) for rank, piece in enumerate(pieces)), *((piece, -1e4) for piece in BYTES)]
    made.model = models.Unigram(known, unk_id=0, byte_fallback=True)
    return made


def wordpiece():
    trainer = trainers.WordPieceTrainer(special_tokens=SPECIAL, vocab_size=400)
    model, words = models.WordPiece(unk_token="<unk>"), pre_tokenizers.BertPreTokenizer()
    return trained(model, words, decoders.WordPiece(), trainer, normalizer=normalizers.BertNormalizer())


TOKENIZERS = {
    "gpt2": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "gpt2-prefix-space": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "gpt2-nfc": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizer=normalizers.NFC()),
    "llama3": lambda: byte_level(
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ),
    "llama2": llama2,
    "phi3": llama2,
    "metaspace-first": lambda: metaspace("first"),
    "metaspace-always": lambda: metaspace("always"),
    "unigram-first": lambda: unigram("first"),
    "unigram-always": lambda: unigram("always"),
    "wordpiece": wordpiece,
}


def written(before, after, prompt):
    """A template: what stands before the user's turn, after the assistant's, and in front of that."""
    return (
        f"{{% for m in messages %}}{{% if m.role == 'assistant' %}}{{{{ '{prompt}' + m.content + '{after}' }}}}"
        f"{{% else %}}{{{{ '{before}' + m.content + '\n' }}}}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ '{prompt}' }}}}{{% endif %}}"
    )


TEMPLATES = {
    "space": written("user: ", "</s>", "assistant: "),
    "blank line": written("user: ", "</s>\n", "### Response:\n\n"),
    "special token": written("<|im_start|>", "<|im_end|>", "<|im_start|>"),
    "word": written("user: ", "</s>", "assistant"),
    "colon": written("user: ", "</s>\n", "assistant:"),
    "chatml": written("<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n"),
    "text alone": written("\n\nHuman: ", "\n\n", "Assistant: "),
}

ENDS = [  # what is computed, ends beside the eos, the template, and what is told not to be written
    ("lm", [], "chatml", "</s>"),
    ("lm", ["<|im_end|>"], "chatml", None),
    ("lm", ["<|im_start|>"], "text alone", "</s> or <|im_start|>"),
    ("lm", ["<|im_start|>"], "special token", "</s> or <|im_start|>"),  # it stands in the prompt alone
    ("lm", [], "colon", None),
    ("score", [], "text alone", None),
]

ANSWERS = [
    "Hello, you.",
    "Ação é reação.",
    "🙂 of course",
    "日本語の答え",
    " Hello",
    "\nHello",
    "\n\nOlá\n",
    "(yes) - no",
    "\u0301e combining",
    "é",
    "A",
    "  two spaces",
]


@cache
def made(name, template):
    """A tokenizer that adds a bos and an eos of its own to whatever it is called on, with a chat template."""
    backend = TOKENIZERS[name]()
    adding = [("<s>", 1), ("</s>", 2)]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=adding)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    taking = [AddedToken(token, rstrip=name == "phi3", special=True, normalized=False) for token in SPECIAL[3:]]
    tokenizer.add_special_tokens({"additional_special_tokens": taking})
    tokenizer.chat_template = TEMPLATES[template]
    return tokenizer


def talk(*turns):
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


def attempt(tokenizer, messages, loss_on):
    """What a conversation is encoded to, or why it is dropped."""
    try:
        return encode(tokenizer, [messages], 600, loss_on)
    except BadRow as problem:
        return str(problem)


def decoded(tokenizer, ids):
    return unicodedata.normalize("NFKC", tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def after(tokenizer, messages):
    """The text that the template writes after the generation prompt."""
    before = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    return tokenizer.apply_chat_template(messages, tokenize=False).removeprefix(before)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_training_goes_on_from_the_prompt_of_generation(name, template):
    """Catches a first token that merges with the prompt, a prompt of other ids, and an added space, bos or eos."""
    tokenizer = made(name, template)
    usable_rows = 0
    for question in ("Who are you?", "Você é? "):
        for answer in ANSWERS:
            messages = talk(question, answer)
            prompt = prompt_ids(tokenizer, messages[:-1])
            whole = tokenizer.apply_chat_template(messages, tokenize=False)
            joint = tokenizer(whole, add_special_tokens=False)["input_ids"]
            encoded = attempt(tokenizer, messages, "completion")
            if isinstance(encoded, str):
                assert name == "wordpiece" and "as a continuation of its generation prompt" in encoded
                assert joint[: len(prompt)] != prompt
                continue
            usable_rows += 1
            (ids,), (mask,) = encoded["branches"], encoded["scored"]
            assert ids[: len(prompt)] == prompt and mask == [False] * len(prompt) + [True] * (len(ids) - len(prompt))
            if joint[: len(prompt)] == prompt:
                assert ids == joint
            elif name != "wordpiece":
                said = decoded(tokenizer, ids).removeprefix(decoded(tokenizer, prompt))
                expected = unicodedata.normalize("NFKC", after(tokenizer, messages))
                if expected.endswith(
                    ">\n"
                ):  # some tokenizers put a space behind a special token, or drop what is there
                    said, expected = said.rstrip(), expected.rstrip()
                assert said == expected
            assert tokenizer.bos_token_id not in ids and ids.count(tokenizer.eos_token_id) <= 2
    assert usable_rows > (0 if (name, template) == ("wordpiece", "word") else len(ANSWERS))


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_scored_turn_goes_on_from_its_prompt(name, template):
    """Catches an earlier turn that is trained on from a prompt that generation does not make, or twice."""
    tokenizer = made(name, template)
    for last, loss_on in product(ANSWERS, ("completion", "all", "response")):
        messages = talk("Who are you?", "Hello, you.", "Você é? ", last)
        first, second = (prompt_ids(tokenizer, messages[:i]) for i in (1, 3))
        encoded = attempt(tokenizer, messages, loss_on)
        if isinstance(encoded, str):
            assert name == "wordpiece"
            continue
        if len(encoded["branches"]) == 2:  # the first answer has other tokens in the whole conversation
            assert loss_on != "response"
            for ids, mask, prompt in zip(encoded["branches"], encoded["scored"], (first, second), strict=True):
                assert ids[: len(prompt)] == prompt and all(mask[len(prompt) :])
                assert any(mask[: len(prompt)]) == (loss_on == "all")
            branches = [tuple(ids) for ids in encoded["branches"]]
            nodes = {ids[:i] for ids in branches for i in range(2, len(ids) + 1)}
            scored = [ids[: i + 1] for ids, mask in zip(branches, encoded["scored"]) for i in np.flatnonzero(mask)]
            assert len(scored) == len(set(scored)) and (loss_on != "all" or set(scored) == nodes)
            continue
        (ids,), (mask,) = encoded["branches"], encoded["scored"]
        assert ids[: len(second)] == second and all(mask[len(second) :])
        if loss_on == "response":
            assert not any(mask[: len(second)])
        else:
            assert ids[: len(first)] == first and mask[len(first)]
            assert any(mask[: len(first)]) == (loss_on == "all")


def test_turns_that_are_rewritten_are_kept(tmp_path):
    """Catches conversations that are left out since an earlier answer has other tokens in the whole."""
    spaced = made("gpt2", "space")
    rows = Dataset.from_list([{"conversations": talk("Hi", "Hello.", "Who?", last)} for last in ("Me.", "You.")])
    arguments = {"kind": "instruction", "source": "rows", "key": "k", "columns": None, "max_length": 64}
    for loss_on, branches in (("completion", 2), ("response", 1)):
        table = tokenize(rows, spaced, loss_on=loss_on, cache_dir=str(tmp_path), **arguments)
        index, said = usable(table, "rows")
        assert index.tolist() == [0, 1] and not said
        assert [len(one) for one in table["branches"]] == [branches] * 2
        assert all(length < sum(map(len, one)) for length, one in zip(table["length"], table["branches"])) or (
            branches == 1
        )


@pytest.mark.parametrize("loss_on", ["completion", "response", "all"])
@pytest.mark.parametrize("head, further, template, told", ENDS)
def test_a_template_without_an_end_is_told_before_training(tmp_path, head, further, template, told, loss_on):
    """Catches answers that never stop after hours of training, and a word where another end than the eos is written."""
    tokenizer = made("gpt2", template)
    rows = [{"prompt": f"Question {i}?", "completion": f"Answer {i}."} for i in range(4)]
    if head == "score":
        rows = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "No."} for row in rows]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataModule(
        tokenizer,
        kind="preference" if head == "score" else "instruction",
        path=str(file),
        head=head,
        loss_on=loss_on,
        ends=[tokenizer.convert_tokens_to_ids(token) for token in further],
        cache_dir=str(tmp_path / "cache"),
    )
    assert [line for line in data.notices if "no end token" in line] == (
        [
            f"{file}: the chat template writes no end token ({told}) after an answer, so the model will not learn to "
            "stop. Let the template write one, or set model.template=aira."
        ]
        if told
        else []
    )


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", ["gpt2", "llama2", "unigram-always"])
def test_pairs_share_the_prompt_and_are_cut_at_the_end(name, template):
    """Catches branches that part before the prompt's end, and a cut that counts from another beginning."""
    tokenizer = made(name, template)
    pair = [talk("Who are you?", answer) for answer in ("Hello, you.", "\nAção")]
    prompt = prompt_ids(tokenizer, pair[0][:-1])
    whole = encode(tokenizer, pair, 600, "response")
    cut = encode(tokenizer, pair, len(prompt) + 2, "response")
    for ids, mask, short in zip(whole["branches"], whole["scored"], cut["branches"], strict=True):
        assert ids[: len(prompt)] == prompt and sum(mask) == len(ids) - len(prompt) and short == ids[: len(short)]
    assert cut["cut"] and cut["targets"] == 4 and not whole["cut"]
    with pytest.raises(BadRow, match=rf"no room for the answer within {len(prompt)} tokens"):
        encode(tokenizer, pair, len(prompt), "response")


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_scorers_read_whole_texts(name, template):
    """Catches a scorer's text in other tokens than its export gives, and an earlier turn's end that a cut spares."""
    tokenizer = made(name, template)
    messages = talk("Who are you?", "Hello.", "Você é?", "A")
    expected = tokenizer.apply_chat_template(messages, return_dict=False)
    assert encode_scorer(tokenizer, [messages], 600, padded=False)["branches"] == [expected]
    long = [*messages[:3], {"role": "assistant", "content": "Hello, you. " * 20}]
    whole = encode_scorer(tokenizer, [long], 600, padded=False)["branches"][0]
    kept = encode_scorer(tokenizer, [long], len(whole) - 5, padded=False)["branches"][0]
    ends = [i for i, token in enumerate(whole) if token == tokenizer.eos_token_id and i > len(whole) - 5]
    ending = whole[ends[-1] :] if ends else []
    assert kept == whole[: len(whole) - 5 - len(ending)] + ending
