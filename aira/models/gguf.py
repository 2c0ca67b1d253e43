"""GGUF files: Transformers makes floating-point weights of them, once; the result is kept in the hub's format."""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from aira.environment import versions
from aira.files import cache_folder
from aira.models.weights import check_loaded, explained, without_report


def converted(path: str, file: Path) -> Path:
    """The folder of a GGUF file's model in the hub's format and float32, in the cache.

    Reading a GGUF file of 262 144 tokens takes Transformers half a minute each time, and a run reads it several times.

    Args:
        path: as the user gave it, for messages.

    Raises:
        AiraError: the file is damaged, of an unknown architecture, or weights are missing in it.
    """
    told = [str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns, versions("transformers", "gguf")]
    key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    folder = cache_folder() / "gguf" / key / file.stem
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / "lock"):
        if folder.exists():
            return folder
        print(f"{path} is converted to float32 once, into {folder}.")
        part = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            with explained(path), without_report():
                where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
                tokenizer = AutoTokenizer.from_pretrained(**where)
                model, info = AutoModelForCausalLM.from_pretrained(
                    **where, dtype=torch.float32, output_loading_info=True
                )
                check_loaded(path, info, base=model.base_model_prefix)
                del model.config.quantization_config  # or Transformers refuses to save what is float32 by now
                model.hf_quantizer = None
                model.save_pretrained(part)
                tokenizer.save_pretrained(part)
            os.replace(part, folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    return folder
