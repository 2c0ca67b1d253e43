"""Token ids of training are those of the exported chat template, and exactly the completions are scored."""

import contextlib
import multiprocessing
import os
import signal
import time
from importlib.metadata import version

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

import aira.data.tokenize
from aira import environment
from aira.data.rendering import render
from aira.data.texts import BadRow
from aira.data.tokenize import encode, tokenize, usable
from aira.models.loading import load_tokenizer
from aira.models.template import SPECIAL_TOKENS, apply_template
from tests.data.conftest import TINY

EOS, SEP, BOS = (SPECIAL_TOKENS[name] for name in ("eos_token", "sep_token", "bos_token"))


def talk(*turns, system=None):
    """A conversation of turns by the user and the assistant in alternation."""
    first = [{"role": "system", "content": system}] if system else []
    return first + [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


CONVERSATIONS = {
    "plain": talk("What is the capital of France?", "The capital of France is Paris."),
    "accents": talk("Qual é a capital da França?", "É Paris, “não” é? Ação — 日本 🙂"),
    "decomposed": talk("Voce\u0302 e\u0301?", "Sou, va\u0301rias vezes."),
    "turns": talk("Quem é você?", "Um assistente.", "E agora?", "Ainda um assistente."),
    "system": talk("Oi", "Olá!", system="Seja breve."),
    "spaces": talk(" a \n", "\n\n  b\tc  "),
}
BREAKING = ("decomposed",)
"""Where decoding does not give the text back letter for letter."""


@pytest.fixture(scope="module")
def chatml():
    """A tokenizer with a template of its own: ChatML with a default system message, as SmolLM2 has it."""
    tokenizer = AutoTokenizer.from_pretrained(load_tokenizer(TINY)[0].name_or_path)
    tokenizer.add_special_tokens({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"})
    tokenizer.chat_template = (
        "{% for message in messages %}"
        "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}"
        "{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    return tokenizer


def scored_texts(tokenizer, encoded):
    """The scored stretches of the only branch, decoded."""
    ids, mask = encoded["branches"][0], encoded["scored"][0]
    edges = np.flatnonzero(np.diff([0, *map(int, mask), 0]))
    return [tokenizer.decode(ids[start:end]) for start, end in zip(edges[::2], edges[1::2])]


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("prompt_bos", [True, False])
def test_ids_are_those_of_the_template(prompt_bos, name):
    """Catches training on other ids than any tool gives that applies the exported template."""
    tokenizer, _ = load_tokenizer(TINY, prompt_bos=prompt_bos)
    messages = CONVERSATIONS[name]
    ids = encode(tokenizer, [messages], 600, "completion")["branches"][0]
    assert ids == tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert (ids[0] == tokenizer.bos_token_id) == prompt_bos


@pytest.mark.parametrize("name", [name for name in CONVERSATIONS if name not in BREAKING])
@pytest.mark.parametrize("prompt_bos", [True, False])
def test_completions_are_scored(prompt_bos, name):
    """Catches a scored prompt, and an answer whose first token or end token is not scored."""
    tokenizer, _ = load_tokenizer(TINY, prompt_bos=prompt_bos)
    messages = CONVERSATIONS[name]
    encoded = encode(tokenizer, [messages], 600, "completion")
    answers = [message["content"] + EOS for message in messages if message["role"] == "assistant"]
    assert scored_texts(tokenizer, encoded) == answers
    assert encoded["targets"] == sum(encoded["scored"][0]) and encoded["length"] == len(encoded["branches"][0])


def test_scoring_starts_where_a_generation_does(tokenizer):
    """Catches a first token of the answer that merges with the prompt, which generation never sees."""
    for messages in CONVERSATIONS.values():
        encoded = encode(tokenizer, [messages], 600, "completion")
        last = len(messages) - 1
        prompt = tokenizer.apply_chat_template(messages[:last], add_generation_prompt=True, return_dict=False)
        assert encoded["branches"][0][: len(prompt)] == prompt
        assert not encoded["scored"][0][len(prompt) - 1] and all(encoded["scored"][0][len(prompt) :])


def test_decomposed_accents(tokenizer):
    """Catches ranges of characters that the tokenizer's normalisation shifts."""
    composed = talk("Você é?", "Sou, várias vezes.")
    expected, found = (
        encode(tokenizer, [talk_], 600, "completion") for talk_ in (composed, CONVERSATIONS["decomposed"])
    )
    assert found["branches"] == expected["branches"] and found["scored"] == expected["scored"]


def test_all_scores_everything_but_the_first(tokenizer):
    """Catches loss_on=all that leaves the prompt out, or asks to predict the first token from nothing."""
    for messages in CONVERSATIONS.values():
        (mask,) = encode(tokenizer, [messages], 600, "all")["scored"]
        assert not mask[0] and all(mask[1:])


def test_format_of_the_published_models(tokenizer):
    """Catches another order of special tokens than the published one, or other ids than the tokens have."""
    (first, second), notes = render(tokenizer, CONVERSATIONS["turns"])
    assert second.text == f"{BOS}Quem é você?{SEP}Um assistente.{EOS}{BOS}E agora?{SEP}Ainda um assistente.{EOS}"
    assert [turn.text[turn.start :] for turn in (first, second)] == [
        f"Um assistente.{EOS}",
        f"Ainda um assistente.{EOS}",
    ]
    assert (
        render(tokenizer, CONVERSATIONS["system"])[0][0].text == f"{BOS}Seja breve.\n\nOi{SEP}Olá!{EOS}" and not notes
    )
    ids = encode(tokenizer, [CONVERSATIONS["plain"]], 600, "completion")["branches"][0]
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert ids.count(tokenizer.sep_token_id) == ids.count(tokenizer.eos_token_id) == 1
    assert [tokenizer.decode([ids[0]]), tokenizer.decode([tokenizer.sep_token_id]), tokenizer.decode([ids[-1]])] == [
        BOS,
        SEP,
        EOS,
    ]


def test_tokenizer_that_adds_a_token_of_its_own(tokenizer):
    """Catches a second token in front of the text, from a tokenizer like OPT's or Llama's."""
    adding = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    adding.backend_tokenizer.post_processor = TemplateProcessing(single="!! $A", special_tokens=[("!!", 0)])
    apply_template(adding, "aira", prompt_bos=False)
    assert adding("a").input_ids[0] == 0
    ids = encode(adding, [CONVERSATIONS["plain"]], 600, "completion")["branches"][0]
    assert ids == adding.apply_chat_template(CONVERSATIONS["plain"], return_dict=False) and ids[0] != 0


def test_cut_at_the_end(tokenizer):
    """Catches a cut at the beginning, one that is not counted, or one of a text that fits exactly."""
    whole = encode(tokenizer, [CONVERSATIONS["plain"]], 600, "completion")
    length = whole["length"]
    cut = encode(tokenizer, [CONVERSATIONS["plain"]], length - 2, "completion")
    assert cut["branches"][0] == whole["branches"][0][:-2] and cut["scored"][0] == whole["scored"][0][:-2]
    assert cut["cut"] and not whole["cut"]
    assert not encode(tokenizer, [CONVERSATIONS["plain"]], length, "completion")["cut"]


def test_no_room_for_the_answer(tokenizer):
    """Catches an example without a scored token, whose loss would be 0 / 0; one scored token is enough."""
    messages = CONVERSATIONS["plain"]
    prompt = len(tokenizer.apply_chat_template(messages[:1], return_dict=False))
    assert encode(tokenizer, [messages], prompt + 1, "completion")["targets"] == 1
    with pytest.raises(BadRow, match=rf"no room for the answer within {prompt} tokens \(it has {prompt}\)"):
        encode(tokenizer, [messages], prompt, "completion")


def test_native_template(chatml):
    """Catches a native template whose default system message or role headers are scored."""
    messages = CONVERSATIONS["turns"]
    encoded = encode(chatml, [messages], 600, "completion")
    assert encoded["branches"][0] == chatml.apply_chat_template(messages, tokenize=True, return_dict=False)
    said = [text.removesuffix("\n") for text in scored_texts(chatml, encoded)]
    assert said == ["Um assistente.<|im_end|>", "Ainda um assistente.<|im_end|>"]
    assert chatml.decode(encoded["branches"][0]).startswith(
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n"
    )


def test_native_template_that_counts_its_turns(tokenizer):
    """Catches a template whose answers are no continuation of what asks for them."""
    rewriting = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    rewriting.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(BadRow, match="asks for an answer otherwise than it writes one"):
        encode(rewriting, [CONVERSATIONS["turns"]], 600, "completion")


def test_native_template_that_refuses(tokenizer):
    """Catches a traceback where a template knows no system message or wants turns in alternation."""
    strict = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    strict.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(BadRow, match="refuses the conversation: System role not supported"):
        encode(strict, [CONVERSATIONS["system"]], 600, "completion")


def test_saved_and_loaded(tokenizer, tmp_path):
    """Catches an export whose tokenizer gives other ids, or that gets the special tokens a second time."""
    tokenizer.save_pretrained(tmp_path)
    plain = AutoTokenizer.from_pretrained(tmp_path)
    again, added = load_tokenizer(str(tmp_path))
    assert added == [] and len(again) == len(tokenizer)
    for messages in CONVERSATIONS.values():
        expected = encode(tokenizer, [messages], 600, "completion")
        assert encode(again, [messages], 600, "completion") == expected
        assert plain.apply_chat_template(messages, return_dict=False) == expected["branches"][0]


# Many rows, and their cache

ROWS = [{"prompt": f"Pergunta {i}?", "completion": f"Resposta {i}."} for i in range(5)]


@pytest.fixture
def run(tokenizer, cache):
    """Tokenize rows as a DataModule does, and return the table and the files of the cache."""

    def make(rows=ROWS, tokenizer=tokenizer, key="k", **settings):
        arguments = {"kind": "instruction", "columns": None, "max_length": 64, "loss_on": "completion", **settings}
        table = tokenize(Dataset.from_list(rows), tokenizer, source="rows", key=key, cache_dir=str(cache), **arguments)
        return table, {file.name: file.stat().st_mtime_ns for file in cache.rglob("*.arrow")}

    return make


def test_second_time_reads_the_cache(run, cache):
    """Catches a cache that is written anew each time, or that gives other rows."""
    first, files = run()
    for file in cache.rglob("*.arrow"):
        os.utime(file, ns=(10**9, 10**9))
    second, again = run()
    assert len(files) == 1 and again == dict.fromkeys(files, 10**9)
    assert second.to_list() == first.to_list() and len(first) == len(ROWS)


def other(**attributes):
    """The tiny tokenizer with other attributes, and the file that it had."""
    tokenizer = load_tokenizer(TINY)[0]
    for name, value in attributes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def with_default(text):
    """A template that writes a system message of its own."""
    template = load_tokenizer(TINY)[0].chat_template
    return f"{{{{ '{text}' }}}}{template}"


CHANGES = {
    "content": lambda: {"key": "other"},
    "kind": lambda: {"kind": "labelled", "head": "score"},
    "head": lambda: {"head": "score"},
    "padded": lambda: {"head": "score", "padded": True},
    "labels": lambda: {"kind": "labelled", "head": "score", "labels": {"5": 1}},
    "other labels": lambda: {"kind": "labelled", "head": "score", "labels": {"5": 0}},
    "max_length": lambda: {"max_length": 12},
    "loss_on": lambda: {"loss_on": "all"},
    "columns": lambda: {"columns": {"completion": "answer"}},
    "template": lambda: {"tokenizer": load_tokenizer(TINY, prompt_bos=False)[0]},
    "default system message": lambda: {"tokenizer": other(chat_template=with_default("Be kind."))},
    "another default system message": lambda: {"tokenizer": other(chat_template=with_default("Be brief."))},
    "end token": lambda: {"tokenizer": other(eos_token=SEP)},
    "end token of a scorer": lambda: {"tokenizer": other(eos_token=SEP), "head": "score"},
    "padding token": lambda: {"tokenizer": other(pad_token=EOS)},
    "separator": lambda: {"tokenizer": other(sep_token=EOS)},
    "beginning": lambda: {"tokenizer": other(bos_token=SEP)},
    "extra tokens": lambda: {"tokenizer": other(extra_special_tokens=["the"])},
    "side of the cut": lambda: {"tokenizer": other(truncation_side="left")},
    "split_special_tokens": lambda: {"tokenizer": other(split_special_tokens=True)},
    "segments": lambda: {"tokenizer": other(model_input_names=["input_ids", "token_type_ids", "attention_mask"])},
    "post-processor": lambda: {"tokenizer": load_tokenizer(TINY, head="score")[0]},
}


def test_what_the_cache_depends_on(run, chatml, monkeypatch):
    """Catches ids of another text, template, tokenizer, role or length that are taken from the cache."""
    rows = [{**row, "answer": "Não.", "text": "Olá!", "label": "1"} for row in ROWS]
    found = {name: run(rows, **change())[0] for name, change in [("none", dict), *CHANGES.items()]}
    found["vocabulary"] = run(rows, tokenizer=chatml)[0]
    for package in ("tokenizers", "transformers", "datasets", "jinja2"):
        monkeypatch.setattr(environment, "version", lambda name, p=package: "0" if name == p else version(name))
        found[package] = run(rows)[0]
    monkeypatch.setattr(aira.data.tokenize, "ENCODER", 0)
    found["encoder"] = run(rows)[0]
    fingerprints = {name: table._fingerprint for name, table in found.items()}
    assert len(set(fingerprints.values())) == len(found), fingerprints
    plain = found["none"].to_list()
    for name in ("kind", "head", "max_length", "loss_on", "columns", "template", "default system message"):
        assert found[name].to_list() != plain, name
    assert found["split_special_tokens"].to_list() != plain  # of which the tokenizer's own file says nothing


def test_what_the_cache_does_not_depend_on(run, tmp_path):
    """Catches tables that are made again for a copy of the tokenizer, another spelling, or after another call."""
    expected = run()[0]._fingerprint
    used = other()
    used(["a", "a b c"], padding=True, truncation=True, max_length=2)
    used.save_pretrained(tmp_path / "copy")
    for change in ({"num_proc": 2}, {"tokenizer": used}, {"tokenizer": load_tokenizer(str(tmp_path / "copy"))[0]}):
        assert run(**change)[0]._fingerprint == expected, change
    rows = [{"text": "Olá!", "label": 5}] * 2
    tables = [
        run(rows, kind="labelled", head="score", labels=names)[0] for names in ({5: 1, "Não": 0}, {"não": 0, "5": 1})
    ]
    assert tables[0]._fingerprint == tables[1]._fingerprint and tables[0]["labels"][0] == [1]


def test_rows_are_encoded_one_by_one(run, tokenizer):
    """Catches rows that are swapped, merged, or lost where one among them is unusable."""
    rows = [*ROWS[:2], {"prompt": "", "completion": "x"}, *ROWS[2:]]
    table, _ = run(rows)
    for row, found in zip(rows, table, strict=True):
        if row["prompt"]:
            ids = tokenizer.apply_chat_template(talk(row["prompt"], row["completion"]), return_dict=False)
            assert found["branches"] == [ids] and found["problem"] == ""
        else:
            assert found["problem"] == "empty prompt" and found["branches"] == [] and found["length"] == 0


def test_two_processes(run):
    """Catches data.num_proc that changes the rows or their order."""
    assert run(num_proc=2, key="two")[0].to_list() == run()[0].to_list()


@pytest.fixture
def started(run, cache, monkeypatch):
    """Start a process that tokenizes, and leaves a letter in a file for each row that it reads, slowly."""
    reading, counted = aira.data.tokenize.read_example, cache / "counted"
    counted.touch()

    def slow(*arguments):
        with counted.open("a") as file:
            file.write("x")
        time.sleep(0.1)
        return reading(*arguments)

    def work(barrier, kept, settings):
        os.setsid()
        barrier.wait(60)
        kept.put(run(**settings)[0].to_list())

    def start(count, **settings):
        forked = multiprocessing.get_context("fork")
        barrier, kept = forked.Barrier(count), forked.Queue()
        processes = [forked.Process(target=work, args=(barrier, kept, settings)) for _ in range(count)]
        for process in processes:
            process.start()
        return processes, kept, counted

    monkeypatch.setattr("aira.data.tokenize.read_example", slow)
    return start


def test_of_several_processes_one_tokenizes(run, started):
    """Catches ranks that all do the same work, and a table that is read before it is whole."""
    _, kept, counted = started(3)
    tables = [kept.get(timeout=60) for _ in range(3)]
    assert counted.stat().st_size == len(ROWS)
    assert tables == 3 * [run()[0].to_list()]


@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_killed_process_is_not_waited_for(started, cache, num_proc):
    """Catches a lock that outlives its holder, in the processes that it started too."""
    (first,), _, counted = started(1, num_proc=num_proc)
    while not counted.stat().st_size:
        time.sleep(0.01)
    first.kill()
    first.join()
    (second,), kept, _ = started(1)
    try:
        assert len(kept.get(timeout=60)) == len(ROWS)
        second.join()
    finally:
        second.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)  # the processes that the killed one has left behind


def whole_batches(table):
    """The beginning of a table, up to the end of its first batch: a stream that reads well, and lacks rows."""
    source = pa.BufferReader(table)
    pa.ipc.open_stream(source).read_next_batch()
    return table[: source.tell()]


@pytest.mark.parametrize("num_proc", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "damage", [lambda table: b"", lambda table: table[: len(table) // 2], lambda table: table[:-20], whole_batches]
)
def test_a_damaged_table_is_made_again(run, cache, damage, num_proc):
    """Catches rows that are missing, or a traceback, since the kept table was cut short, also between two batches."""
    rows = [{"prompt": f"Pergunta {i}?", "completion": "Sim."} for i in range(2100)]
    expected = run(rows, num_proc=num_proc)[0]["prompt"][:]
    for table in cache.rglob("*.arrow"):
        table.write_bytes(damage(table.read_bytes()))
    assert run(rows, num_proc=num_proc)[0]["prompt"][:] == expected and len(expected) == 2100


def test_usable(run):
    """Catches an unusable row that is trained on, and wrong numbers in what is said about it."""
    long = {"prompt": "a", "completion": "b " * 100}
    wordy = {"prompt": "a " * 80, "completion": "b"}
    wordier = {"prompt": "a " * 90, "completion": "b"}
    rows = [ROWS[0], {"prompt": "a", "completion": ""}, long, wordy, ROWS[1], wordier]
    index, said = usable(run(rows)[0], "rows (train)")
    assert index.tolist() == [0, 2, 4]
    assert said == [
        "rows (train): dropped 2 of 6 rows: the prompt leaves no room for the answer within 64 tokens (first: row 4).",
        "rows (train): dropped 1 of 6 rows: empty completion (first: row 2).",
        "rows (train): cut 1 of 6 rows to data.max_length.",
    ]
    odd = [{"conversations": [{"role": f"{i}" * 9000, "content": "a"}]} for i in range(10, 40)]
    said = usable(run([*odd, odd[3]], key="odd")[0], "rows")[1]
    assert len(said) == 11 and max(map(len, said)) < 200 and "dropped 2 of 31 rows" in said[0]
    assert said[-1] == "rows: dropped 20 of 31 rows for 20 other reasons."
    index, said = usable(run(key="good")[0], "rows")
    assert index.tolist() == [0, 1, 2, 3, 4] and said == []
