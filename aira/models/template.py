"""The published prompt format as special tokens and a chat template that any Hugging Face tool can use."""

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from aira.errors import AiraError

SPECIAL_TOKENS = {
    "bos_token": "<|startofinstruction|>",
    "sep_token": "<|endofinstruction|>",
    "eos_token": "<|endofcompletion|>",
    "pad_token": "<|pad|>",
    "unk_token": "<|unk|>",
}

_TEMPLATE = """\
{%- set opening = BOS -%}
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set ns.system = ns.system + message['content'] + '\n\n' -%}
{%- elif message['role'] == 'user' -%}
{{- opening + ns.system + message['content'] + '<|endofinstruction|>' -}}
{%- set ns.system = '' -%}
{%- elif message['role'] == 'assistant' -%}
{{- message['content'] + '<|endofcompletion|>' -}}
{%- else -%}
{{- raise_exception('Unknown role: ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}"""


def chat_template(prompt_bos: bool) -> str:
    """The Aira format as Jinja: bos, instruction, sep, completion, eos; a system message leads the next instruction.

    Args:
        prompt_bos: begin each instruction with `<|startofinstruction|>`; published OPT and TinyLlama models do not.
    """
    return _TEMPLATE.replace("BOS", f"'{SPECIAL_TOKENS['bos_token']}'" if prompt_bos else "''")


def speaks_aira(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether its chat template is the published format."""
    return tokenizer.chat_template in (chat_template(True), chat_template(False))


def use_own_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a published Aira model, whose tokenizer has the special tokens and no template, the template, in place.

    Raises:
        AiraError: there is no template, and the special tokens are not there either; or no token to pad by.
    """
    if not tokenizer.chat_template:
        known = tokenizer.get_vocab()
        if SPECIAL_TOKENS["sep_token"] not in known or tokenizer.eos_token != SPECIAL_TOKENS["eos_token"]:
            raise AiraError(
                f"{tokenizer.name_or_path} has no chat template: it was not trained to answer. Train it first "
                "(aira train method=sft), or name a model that was."
            )
        tokenizer.chat_template = chat_template(SPECIAL_TOKENS["bos_token"] in known)
    _pad_by_the_end(tokenizer)


def _pad_by_the_end(tokenizer: PreTrainedTokenizerBase) -> None:
    """Pad by the end token where there is no other, in place."""
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise AiraError(
                f"{tokenizer.name_or_path} has no end token and none for padding: set eos_token in its "
                "tokenizer_config.json to the token that ends an answer."
            )
        tokenizer.pad_token = tokenizer.eos_token


def apply_template(tokenizer: PreTrainedTokenizerBase, template: str, prompt_bos: bool) -> list[int]:
    """Give the tokenizer the template it is to train with, in place.

    A tokenizer that already speaks the Aira format (an earlier run's export) is left as it is.

    Args:
        template: `aira`, or `native` for the tokenizer's own chat template.

    Returns:
        Ids of the tokens that were added to the vocabulary.

    Raises:
        AiraError: `native`, and the tokenizer has no chat template, or no token to pad by.
    """
    if template == "native":
        if not tokenizer.chat_template:
            raise AiraError(
                f"model.template=native: {tokenizer.name_or_path} has no chat template. Use model.template=aira."
            )
        _pad_by_the_end(tokenizer)
        return []
    if speaks_aira(tokenizer):
        return []
    before = len(tokenizer)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    tokenizer.chat_template = chat_template(prompt_bos)
    return list(range(before, len(tokenizer)))


def prepare_scorer(tokenizer: PreTrainedTokenizerBase, architecture: str) -> list[int]:
    """Make a tokenizer fit for a scorer, in place.

    Transformers finds the end of a padded text by the pad token, so that must be no other token, and the padding must
    stand on the right. A causal model is read at its end token, so `tokenizer(text)` ends with it, also where it cuts.

    Returns:
        Ids of the tokens that were added to the vocabulary.
    """
    before = len(tokenizer)
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    others = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in others:
        tokenizer.add_special_tokens({"pad_token": SPECIAL_TOKENS["pad_token"]})
    if architecture == "causal":
        end = tokenizer.eos_token
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=["$A", end], special_tokens=[(end, tokenizer.eos_token_id)]
        )
    return list(range(before, len(tokenizer)))
