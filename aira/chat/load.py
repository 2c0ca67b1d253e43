"""A chat from its configuration."""

import sys
import warnings
from typing import Any

from aira.errors import AiraError
from aira.files import check_exists, exports

ROLES = {"chat_model": "chat", "reward_model": "reward", "toxicity_model": "toxicity"}


def load(values: dict[str, Any]) -> Any:
    """The chat of a configuration; which models `last` stands for is told on stderr."""
    if values["chat_model"] == "none":
        raise AiraError("chat_model=none: somebody must answer. Name a folder, a hub id, or last.")
    for key in ROLES:
        if values[key] not in ("last", "none"):
            check_exists(key, values[key])
    from aira.chat.pipeline import Chat  # torch is imported only once the configuration is known to be right
    from aira.models.forward import device_of

    language = values["language"]["code"]
    paths = {
        key: _last(role, language, values["output_dir"]) if values[key] == "last" else values[key]
        for key, role in ROLES.items()
        if values[key] != "none"
    }
    for key in ROLES:
        print(f"{key}: {paths.get(key) or 'none'}", file=sys.stderr)
    guard = values["guard"]
    keys = ("n", "temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "tokens_per_row")
    with warnings.catch_warnings(record=True) as told:
        chat = Chat(
            str(paths["chat_model"]),
            paths.get("reward_model"),
            paths.get("toxicity_model"),
            **{key: values[key] for key in keys},
            default_message=values.get("default_message"),
            threshold=guard["threshold"],
            threshold_logit=guard["threshold_logit"],
            guard_reads=guard["reads"],
            high_score=guard["high_score"],
            language=language,
            device=device_of(values["device"]),
        )
    for warning in told:
        if warning.category is UserWarning:
            print(f"Notice: {warning.message}", file=sys.stderr)
    return chat


def _last(role: str, language: str, output_dir: str) -> str | None:
    """The newest export of a role in a language; None for a scorer where there is none."""
    from aira.chat.pipeline import language_of, role_of

    for export in exports(output_dir):
        try:
            if role_of(export) == role and language_of(str(export)) == language:
                return str(export)
        except AiraError as error:
            print(f"Notice: {export} is passed over: {error}", file=sys.stderr)
    if role == "chat":
        raise AiraError(
            f"chat_model=last: no run below {output_dir}/ has a chat model in language={language}. "
            f"Train one (aira train language={language}), or name one: chat_model=<folder or hub id>."
        )
    return None
