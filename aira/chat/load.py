"""A chat from its configuration."""

import sys
import warnings
from typing import Any

from aira.config.schema import Answering, Chat
from aira.config.values import check_guard
from aira.errors import AiraError
from aira.files import check_exists, exports

PURPOSES = {"chat_model": "chat", "reward_model": "reward", "toxicity_model": "toxicity"}


def load(settings: Answering) -> Any:
    """The chat of a configuration; the models that `last` stands for are printed on stderr."""
    paths_by_key = {key: getattr(settings, key) for key in PURPOSES}
    if settings.chat_model == "none":
        raise AiraError("chat_model=none: somebody must answer. Name a folder, a hub id, or last.")
    for key, path in paths_by_key.items():
        if path not in ("last", "none"):
            check_exists(key, path)
    from aira.chat.pipeline import Chat as Talk  # torch is imported only once the configuration is known to be right
    from aira.models.forward import device_of

    language = settings.language.code
    paths = {
        key: _last(PURPOSES[key], language, settings.output_dir) if path == "last" else path
        for key, path in paths_by_key.items()
        if path != "none"
    }
    if not paths.get("toxicity_model"):
        check_guard(settings)
    for key in PURPOSES:
        print(f"{key}: {paths.get(key) or 'none'}", file=sys.stderr)
    guard = settings.guard
    with warnings.catch_warnings(record=True) as caught:
        chat = Talk(
            str(paths["chat_model"]),
            paths.get("reward_model"),
            paths.get("toxicity_model"),
            n=settings.n,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            repetition_penalty=settings.repetition_penalty,
            max_new_tokens=settings.max_new_tokens,
            tokens_per_row=settings.tokens_per_row,
            default_message=settings.default_message if isinstance(settings, Chat) else None,
            threshold=guard.threshold,
            threshold_logit=guard.threshold_logit,
            guard_reads=guard.reads,
            high_score=guard.high_score,
            language=language,
            device=device_of(settings.device),
        )
    for warning in caught:
        if warning.category is UserWarning:
            print(f"Notice: {warning.message}", file=sys.stderr)
    return chat


def _last(purpose: str, language: str, output_dir: str) -> str | None:
    """The newest export of a purpose in a language; None for a scorer where there is none."""
    from aira.chat.pipeline import language_of, purpose_of

    for export in exports(output_dir):
        try:
            if purpose_of(export) == purpose and language_of(str(export)) == language:
                return str(export)
        except AiraError as error:
            print(f"Notice: {export} is passed over: {error}", file=sys.stderr)
    if purpose == "chat":
        raise AiraError(
            f"chat_model=last: no run below {output_dir}/ has a chat model in language={language}. "
            f"Train one (aira train language={language}), or name one: chat_model=<folder or hub id>."
        )
    return None
