"""Measurement shared by the benchmarks; nothing here knows which contender it measures.

Every run of a contender is a process of its own, and the runs of the contenders take turns
(``interleave``), so that a change in the machine's load falls on all of them. Inside the process one
``Meter`` watches the training loop; the contender only calls ``Meter.step`` after every optimizer
step, once the gradients are cleared.

Time. A step lasts from the end of one ``Meter.step`` to the beginning of the next, so it includes
fetching and collating the batch, forward, backward, clipping and the optimizer. The warm-up steps do
not count.

Memory. ``VmHWM`` in ``/proc/self/status`` is the peak resident size of the process, and writing ``5``
to ``/proc/self/clear_refs`` makes it start over (Linux only). The idle size is taken in the last
warm-up step directly after the optimizer has stepped, with weights, gradients and optimizer state
resident and every activation freed; the size of the gradients is subtracted. During the timed steps
the peak is read and reset whenever a gradient is completed and after the optimizer, and

    activation memory = peak since the last reading - idle size - gradients held at this moment

A plain difference of two peaks would not do: at the end of the forward pass, where the activations
peak, there are no gradients yet. Between steps, with the clock stopped, ``malloc_trim`` returns freed
pages to the system, so that no step inherits the heap of the one before.

Compute. The fraction of the matmul rate is model FLOPs per second over the best rate of a large
square matmul in the same precision and with the same number of threads, where

    model FLOPs = 6 x (matmul weights without embedding and LM head) x (tokens, without padding)
                + 6 x (hidden size x vocabulary) x (scored tokens)

Attention scores, recomputation, padding and a reference model do not count: they are cost, not work
asked for. A prompt's tokens count once for each response, so sharing them can exceed what is possible
without.
"""

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

Run = dict[str, Any]
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}


def resident(field: str) -> int:
    """Bytes of ``VmRSS`` (now) or ``VmHWM`` (peak since the last ``reset_peak``)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def release_freed_pages() -> None:
    ctypes.CDLL(None).malloc_trim(0)


def bf16_is_native() -> bool:
    flags = Path("/proc/cpuinfo").read_text()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def matmul_rate(precision: str, size: int = 2048, trials: int = 5) -> float:
    """Best rate, in FLOP/s, of a square matmul."""
    left, right = (torch.randn(size, size).to(PRECISIONS[precision]) for _ in range(2))
    seconds = []
    for _ in range(trials + 1):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:])


class Meter:
    """Collects the figures of one run; ``attach`` it to the model, then ``step`` after every step."""

    def __init__(self, warmup: int, steps: int) -> None:
        self.warmup, self.total = warmup, warmup + steps
        self.losses: list[float] = []
        self.tokens: list[int] = []
        self.scored: list[int] = []
        self.examples: list[int] = []
        self.seconds: list[float] = []
        self.margins: list[float] = []
        self.prepared = 0.0  # seconds of work before the first step that is due to all of them
        self.activation = 0
        self.idle: int | None = None
        self._gradients: dict[int, int] = {}
        self._start = time.perf_counter()

    def attach(self, model: nn.Module) -> None:
        linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
        head = model.get_output_embeddings() or model.score  # type: ignore[operator]
        self.body_weights = sum(m.weight.numel() for m in linear if m is not head)
        self.head_weights = head.weight.numel()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._gradient_ready)
        register_optimizer_step_post_hook(self._optimizer_stepped)

    def step(self, loss: float, tokens: int, scored: int, examples: int, margin: float = 0.0) -> None:
        """``loss`` of the whole batch, its ``tokens`` without padding, those ``scored``, ``examples``.

        ``margin`` of rewards, where there are any: compared as the losses are.
        """
        self.seconds.append(time.perf_counter() - self._start)
        self.losses.append(float(loss))
        self.margins.append(float(margin))
        self.tokens.append(int(tokens))
        self.scored.append(int(scored))
        self.examples.append(int(examples))
        self._gradients.clear()
        release_freed_pages()
        reset_peak()
        self._start = time.perf_counter()

    def report(self) -> Run:
        if len(self.losses) != self.total:
            raise RuntimeError(f"{len(self.losses)} steps were measured instead of {self.total}")
        tokens, scored, examples, seconds = (
            sum(values[self.warmup :]) for values in (self.tokens, self.scored, self.examples, self.seconds)
        )
        return {
            "tokens_per_second": tokens / seconds,
            "with_preparation": tokens / (seconds + self.prepared * tokens / sum(self.tokens)),
            "examples_per_second": examples / seconds,
            "step_seconds": statistics.median(self.seconds[self.warmup :]),
            "activation_bytes": self.activation,
            "idle_bytes": self.idle,
            "flops_per_second": 6 * (self.body_weights * tokens + self.head_weights * scored) / seconds,
            "tokens": self.tokens,
            "scored": self.scored,
            "losses": self.losses,
            "margins": self.margins,
        }

    def _gradient_ready(self, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        self._gradients[id(parameter)] = parameter.grad.nbytes
        self._read_peak()

    def _optimizer_stepped(self, *_: Any) -> None:
        if len(self.losses) == self.warmup - 1:
            release_freed_pages()
            self.idle = resident("VmRSS") - sum(self._gradients.values())
        self._read_peak()

    def _read_peak(self) -> None:
        if self.idle is not None and len(self.losses) >= self.warmup:
            held = self.idle + sum(self._gradients.values())
            self.activation = max(self.activation, resident("VmHWM") - held)
            reset_peak()


def run_child(script: Path, arguments: Sequence[str]) -> Run:
    """Run ``script`` in a process of its own and read the JSON on the last line it prints."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.run(
        [sys.executable, str(script), *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )
    if process.returncode:
        raise SystemExit(f"{script.name} {' '.join(arguments)} failed")
    return json.loads(process.stdout.splitlines()[-1])


def interleave(contenders: Sequence[str], repeat: int, run: Callable[[str], Run]) -> dict[str, list[Run]]:
    """Run all contenders, then all of them again, ``repeat`` times."""
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    for repetition in range(repeat):
        for name in contenders:
            runs[name].append(run(name))
            speed = runs[name][-1]["tokens_per_second"]
            print(f"{repetition + 1}/{repeat} {name}: {speed:.0f} tokens/s", file=sys.stderr)
    return runs


def markdown_table(runs: dict[str, list[Run]], reference: str) -> str:
    """Medians over the repetitions; ratios and loss differences are against ``reference``."""

    def median(name: str, key: str) -> float:
        return statistics.median(run[key] for run in runs[name])

    rate = max(run["matmul_rate"] for repeated in runs.values() for run in repeated)
    reference = reference if reference in runs else next(iter(runs))
    expected = runs[reference][0]
    lines = [
        "| contender | tokens/s | ratio | with cache | ratio | examples/s | step, s | activations, MB | ratio "
        "| of matmul rate | max difference of losses | of margins |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, repeated in runs.items():
        same = all(run[key] == expected[key] for run in repeated for key in ("scored", "tokens"))
        differences = [
            max(abs(a - b) for run in repeated for a, b in zip(run[key], expected[key]))
            for key in ("losses", "margins")
        ]
        speed, whole, memory = (
            median(name, key) for key in ("tokens_per_second", "with_preparation", "activation_bytes")
        )
        cells = [
            name,
            f"{speed:.0f}",
            f"{speed / median(reference, 'tokens_per_second'):.2f}",
            f"{whole:.0f}",
            f"{whole / median(reference, 'with_preparation'):.2f}",
            f"{median(name, 'examples_per_second'):.2f}",
            f"{median(name, 'step_seconds'):.2f}",
            f"{memory / 1e6:.0f}",
            f"{memory / median(reference, 'activation_bytes'):.2f}",
            f"{median(name, 'flops_per_second') / rate:.0%}",
            *(f"{difference:.1e}" if same else "other tokens" for difference in differences),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"Matmul rate {rate / 1e9:.0f} GFLOP/s, {torch.get_num_threads()} threads."]
    return "\n".join(lines)
