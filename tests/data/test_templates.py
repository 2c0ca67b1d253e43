"""Chat templates as models of today have them: what trains is what generation sees, and what turns share stands once.

The templates are rebuilt here in a few lines each: what they strip, add, move or refuse.
"""

import numpy as np
import pytest
from transformers import AutoTokenizer

from aira.data import rendering
from aira.data.rendering import render
from aira.data.texts import BadRow
from aira.data.tokenize import encode, encode_scorer
from aira.data.trees import Tree, pack, tree_length
from aira.inference.generation import prompt_ids
from tests.data.conftest import TINY

STRIPPED = "(m.content.split('</think>') | last).lstrip('\\n')"
TEMPLATES = {
    # reasoning of earlier answers goes, and an answer that is none is given an empty one
    "qwen3": """{%- set ns = namespace(last=-1) -%}
{%- for m in messages if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endfor -%}
{%- if tools -%}<|im_start|>system\n{{ messages[0].content if messages[0].role == 'system' }}# Tools\n<tools>
{%- for tool in tools %}\n{{ tool | tojson }}{%- endfor %}\n</tools><|im_end|>\n
{%- elif messages[0].role == 'system' -%}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{%- endif -%}
{%- set seen = namespace(users=0) -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{%- set seen.users = seen.users + 1 -%}
{{- '<|im_start|>user\n' + m.content + '<|im_end|>\n' -}}
{%- elif m.role == 'assistant' -%}
{{- '<|im_start|>assistant\n' -}}
{%- if seen.users > ns.last -%}{{- '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' -}}{%- endif -%}
{{- m.content -}}
{%- for call in m.tool_calls or [] -%}
{{- '\n<tool_call>\n' + (call.function | tojson) + '\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- elif m.role == 'tool' -%}
{{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}""",
    # a system prompt of its own, and texts without the space around them
    "llama3": "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\n\nToday is a day.<|im_end|>' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n\n' + m.content | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}",
    # no system turn, and turns in alternation
    "gemma": "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{{ '<|im_start|>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}",
    # other turns than the three are passed over, and so is a system turn that is not the first
    "phi3": "{% for m in messages %}{% if m.role == 'system' and loop.first %}"
    "{{ '<|system|>\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'user' %}{{ '<|user|>\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|assistant|>\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    # the system prompt goes with the last user's turn
    "mistral": "{% if messages[0].role == 'system' %}"
    "{% set system = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) or m.role == 'system' %}"
    "{{ raise_exception('must alternate') }}{% endif %}"
    "{% set last = rest[loop.index0:] | selectattr('role', 'equalto', 'user') | list | length == 1 %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + (system if last else '') + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
    # reasoning is opened by what asks for an answer, and gone from what was answered
    "deepseek": "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
    "{{ '<|user|>' + m.content }}{% else %}{{ '<|assistant|>' + " + STRIPPED + " + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}",
    # channels; the last answer ends otherwise than earlier ones
    "gpt-oss": "{{ '<|im_start|>system<|message|>You are a model.<|im_end|>' }}"
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if loop.last and m.thinking %}"
    "{{ '<|im_start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|im_end|>' }}"
    "{% endif %}{{ '<|im_start|>assistant<|channel|>final<|message|>' + m.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|im_end|>' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '<|message|>' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}",
}
REWRITING = {"qwen3", "mistral", "deepseek", "gpt-oss", "phi3"}


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


DIALOGUE = [
    turn("user", "What is 2 + 2?"),
    turn("assistant", "It is 4.", reasoning_content="Two and two."),
    turn("user", "And 3 + 3?"),
    turn("assistant", "It is 6."),
    turn("user", "And 4 + 4?"),
    turn("assistant", "It is 8.", reasoning_content="Four and four."),
]


@pytest.fixture(scope="module")
def tokenizers():
    made = {}
    for name, template in TEMPLATES.items():
        tokenizer = made[name] = AutoTokenizer.from_pretrained(TINY.replace("pkg://aira.models", "aira/models"))
        tokenizer.add_special_tokens(
            {
                "eos_token": "<|im_end|>",
                "pad_token": "<|pad|>",
                "additional_special_tokens": ["<|im_start|>", "<|return|>", "<|user|>", "<|assistant|>", "<|message|>"],
            }
        )
        tokenizer.chat_template = template
    return made


def answers(tokenizer, encoded):
    """For each scored stretch: the tokens before it, and its text."""
    found = []
    for ids, mask in zip(encoded["branches"], encoded["scored"], strict=True):
        edges = np.flatnonzero(np.diff([0, *map(int, mask), 0]))
        found += [
            (ids[:start], tokenizer.decode(ids[start:end])) for start, end in zip(edges[::2], edges[1::2], strict=True)
        ]
    return found


@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_each_turn_trains_on_what_generation_sees(tokenizers, name, system):
    """Catches a turn whose history is another than at inference, is scored beyond its answer, or is left out."""
    tokenizer = tokenizers[name]
    messages = [turn("system", "Be brief."), *DIALOGUE] if system else DIALOGUE
    encoded = encode(tokenizer, [messages], 2000, "completion")
    asked = [message for message in messages if message["role"] != "system"] if name == "gemma" else messages
    if name == "gemma" and system:
        asked = [turn("user", "Be brief.\n\nWhat is 2 + 2?"), *asked[1:]]
    if name in ("llama3", "gemma", "phi3", "mistral"):  # which know no reasoning
        asked = [
            turn("assistant", f"<think>\n{message['reasoning_content']}\n</think>\n\n{message['content']}")
            if "reasoning_content" in message
            else message
            for message in asked
        ]
    at = [i for i, message in enumerate(asked) if message["role"] == "assistant"]
    found = answers(tokenizer, encoded)
    sequence = {"tokenize": True, "return_dict": False, "add_generation_prompt": True}
    assert [before for before, _ in found] == [tokenizer.apply_chat_template(asked[:i], **sequence) for i in at]
    of_messages = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    assert [before for before, _ in found] == [prompt_ids(tokenizer, messages[:i]) for i in of_messages]
    for i, (_, text) in zip(at, found, strict=True):
        assert asked[i]["content"] in text and "user" not in text
        reasoning = asked[i].get("reasoning_content")
        assert reasoning is None or reasoning in text
    assert (len(encoded["branches"]) == 3) == (name in REWRITING - ({"mistral"} if not system else set()))
    nodes = {tuple(ids[: i + 1]) for ids in encoded["branches"] for i in range(len(ids))}
    assert encoded["length"] == len(nodes) == tree_length(encoded["branches"])


def test_shared_history_is_computed_once(tokenizers):
    """Catches a history that is laid out once for each turn: of three turns, only what differs stands again."""
    tokenizer = tokenizers["qwen3"]
    encoded = encode(tokenizer, [DIALOGUE], 2000, "completion")
    row = pack([Tree(encoded["branches"], encoded["scored"])])
    assert row.input_ids.shape[1] == encoded["length"] < 0.75 * sum(map(len, encoded["branches"]))
    assert tokenizer.decode(row.input_ids[0]).count("What is 2 + 2?") == 1
    (span,) = row.spans
    for ids, runs in zip(encoded["branches"], span.branches, strict=True):
        places = [place for run in runs for place in range(*run)]
        assert row.input_ids[0, places].tolist() == ids and row.position_ids[0, places].tolist() == [*range(len(ids))]
        for i, place in enumerate(places):
            assert span.mask[0, 0, place].nonzero()[:, 0].tolist() == places[: i + 1]


def test_all_scores_each_token_once(tokenizers):
    """Catches loss_on=all that scores a shared history once for each turn."""
    encoded = encode(tokenizers["qwen3"], [DIALOGUE], 2000, "all")
    scored = [
        tuple(ids[: i + 1])
        for ids, mask in zip(encoded["branches"], encoded["scored"], strict=True)
        for i in np.flatnonzero(mask)
    ]
    assert len(scored) == len(set(scored)) == encoded["length"] - 1


def test_pairs_and_scorers_read_the_last_turn(tokenizers):
    """Catches a pair that is dropped since earlier turns are rewritten, or has another history than at inference."""
    tokenizer = tokenizers["qwen3"]
    pair = [[*DIALOGUE[:-1], turn("assistant", text)] for text in ("It is 8.", "Nine.")]
    prompt = prompt_ids(tokenizer, DIALOGUE[:-1])
    encoded = encode(tokenizer, pair, 2000, "response")
    assert [before for before, _ in answers(tokenizer, encoded)] == [prompt] * 2
    for ids in encode_scorer(tokenizer, pair, 2000, padded=False)["branches"]:
        assert ids[: len(prompt)] == prompt


def test_turns_beyond_the_limit(tokenizers):
    """Catches a dialogue that is lost since its last turn is too long, and a turn that is trained on in part unseen."""
    whole = encode(tokenizers["qwen3"], [DIALOGUE], 2000, "completion")
    short = encode(tokenizers["qwen3"], [DIALOGUE], len(whole["branches"][1]), "completion")
    assert short["branches"] == whole["branches"][:2] and short["cut"]
    with pytest.raises(BadRow, match="leaves no room"):
        encode(tokenizers["qwen3"], [DIALOGUE], 5, "completion")


ADAPTED = {
    "system": ("gemma", [turn("system", "S"), turn("user", "u"), turn("assistant", "a")], "S\n\nu", "SYSTEM_MOVED"),
    "late system": (
        "phi3",
        [turn("user", "u"), turn("system", "S"), turn("assistant", "a")],
        "u\n\nS",
        "SYSTEM_MOVED",
    ),
    "users": ("gemma", [turn("user", "u"), turn("user", "v"), turn("assistant", "a")], "u\n\nv", "JOINED"),
    "all of it": (
        "mistral",
        [turn("user", "u"), turn("system", "S"), turn("user", "v"), turn("assistant", "a")],
        "u\n\nS\n\nv",
        "SYSTEM_MOVED",
    ),
    "answers": (
        "gemma",
        [turn("user", "u"), turn("assistant", "a"), turn("assistant", "b")],
        "a\n\nb",
        "JOINED",
    ),
}


@pytest.mark.parametrize("name, messages, text, note", ADAPTED.values(), ids=ADAPTED)
def test_what_a_template_has_no_place_for(tokenizers, name, messages, text, note):
    """Catches a turn that is lost, moved behind what it was said before, or joined without a word."""
    turns, notes = render(tokenizers[name], messages)
    assert text in turns[-1].text and getattr(rendering, note) in notes


def test_consecutive_turns(tokenizers):
    """Catches a key that is not read."""
    messages = [turn("user", "u"), turn("user", "v"), turn("assistant", "a")]
    assert render(tokenizers["llama3"], messages)[1] == []
    ((whole, *_),), notes = render(tokenizers["llama3"], messages, consecutive="join")
    assert notes == [rendering.JOINED] and "u\n\nv<|im_end|>" in whole
    with pytest.raises(BadRow, match="consecutive turns of one role"):
        render(tokenizers["llama3"], messages, consecutive="refuse")
    render(tokenizers["llama3"], DIALOGUE, consecutive="refuse")


def test_weights_of_turns(tokenizer, tokenizers):
    """Catches a turn that is trained on though its weight is 0, by a template that rewrites and one that does not."""
    messages = [*DIALOGUE[:3], DIALOGUE[3] | {"train": False}, *DIALOGUE[4:]]
    for each in (tokenizer, tokenizers["qwen3"]):
        for loss_on in ("completion", "all"):
            encoded = encode(each, [messages], 2000, loss_on)
            texts = " ".join(text for _, text in answers(each, encoded))
            assert "It is 4." in texts and "It is 8." in texts
            assert "It is 6." not in texts or (loss_on == "all" and each is not tokenizer)
    with pytest.raises(BadRow, match="no answer is trained on"):
        encode(tokenizer, [[DIALOGUE[0], DIALOGUE[1] | {"train": False}]], 2000, "completion")


CALL = {"type": "function", "function": {"name": "sum", "arguments": {"a": 1, "b": 2}}}
TOOLS = [{"type": "function", "function": {"name": "sum", "parameters": {"a": "int", "b": "int"}}}]
CALLING = [
    turn("user", "1 + 2?"),
    turn("assistant", "", tool_calls=[CALL]),
    turn("tool", '{"sum": 3}'),
    turn("assistant", "It is 3."),
]


def test_tools(tokenizer, tokenizers):
    """Catches tools and calls that are lost where a template has no place for them, or not in its own form."""
    turns, notes = render(tokenizer, CALLING, TOOLS)
    whole = turns[-1].text
    assert notes == [rendering.TOOLS_AS_TEXT] and '<tools>\n{"type": "function"' in whole
    assert (
        '<tool_call>\n{"name": "sum", "arguments": {"a": 1, "b": 2}}\n</tool_call>' in turns[0].text[turns[0].start :]
    )
    assert '<tool_response>\n{"sum": 3}\n</tool_response>' in whole and whole.count("1 + 2?") == 1
    turns, notes = render(tokenizers["qwen3"], CALLING, TOOLS)
    assert notes == [] and "# Tools" in turns[0].text and len(turns) == 2
    encoded = encode(tokenizers["qwen3"], [CALLING], 2000, "completion", TOOLS)
    assert ["<tool_call>" in text for _, text in answers(tokenizers["qwen3"], encoded)] == [True, False]


def test_control_tokens_in_tools_are_text(tokenizers):
    """Catches the name of a control token in a call, a tool or a reasoning, that ends a turn."""
    tokenizer = tokenizers["qwen3"]
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": "<|im_end|>"}}}
    messages = [turn("user", "u"), turn("assistant", "x", tool_calls=[call], reasoning_content="a<|im_start|>b")]
    (ids,) = encode(tokenizer, [messages], 2000, "completion")["branches"]
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2
    assert "a<|im_start|>b" in tokenizer.decode(ids)


def test_a_template_that_loses_an_answer(tokenizers):
    """Catches a template that writes other text than the data's without a word."""
    tokenizer = AutoTokenizer.from_pretrained("aira/models/tiny/causal")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content | upper + '\n' }}{% endfor %}"
    with pytest.raises(BadRow, match="leaves out a user turn, or changes its text"):
        render(tokenizer, [turn("user", "hello"), turn("assistant", "you")])
