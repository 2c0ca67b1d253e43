"""The optimizer and the learning rates of a run, from the libraries that have them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adafactor, AdamW, Muon, Optimizer
from transformers import PreTrainedModel, get_scheduler

from aira.config.schema import Optimizer as OptimizerSettings
from aira.config.schema import Schedule
from aira.config.types import steps_of


def make_optimizer(module: nn.Module, settings: OptimizerSettings, fused: bool) -> Optimizer:
    """The optimizer of the weights that are trained; vectors, such as biases and norms, have no weight decay.

    Args:
        module: whose weights are trained.
        settings: `optimizer` in conf/train.yaml.
        fused: whether AdamW's step may be one kernel, which unscales gradients too late for clipping.
    """
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    matrices = _hidden_matrices(module) if settings.name == "muon" else []
    chosen = {id(weight) for weight in matrices}
    rest = [weight for weight in trained if id(weight) not in chosen]
    groups = [
        {"params": [weight for weight in rest if weight.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [weight for weight in rest if weight.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    adam: dict[str, Any] = {"lr": settings.lr, "betas": (settings.betas[0], settings.betas[1]), "eps": settings.eps}
    if settings.name == "adafactor":
        return Adafactor(groups, lr=settings.lr)
    if settings.name == "adamw-8bit":
        from bitsandbytes.optim import AdamW8bit

        found: Optimizer = AdamW8bit(groups, **adam)
        return found
    others = [AdamW(groups, fused=fused, **adam)] if groups else []
    if not matrices:
        return others[0]
    muon = Muon(
        matrices,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        adjust_lr_fn="match_rms_adamw",
    )
    return Together([muon, *others])


def _hidden_matrices(module: nn.Module) -> list[Tensor]:
    """The trained weights that Muon is for: matrices, without those of embeddings and heads (Jordan et al., 2024)."""
    outer: list[nn.Module | None] = []
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            outer.append(part)
        if isinstance(part, PreTrainedModel):
            outer += [part.get_output_embeddings(), getattr(part, "score", None), getattr(part, "classifier", None)]
    others = {id(weight) for part in outer if part is not None for weight in part.parameters()}
    return [
        weight
        for name, weight in module.named_parameters()
        if weight.requires_grad and weight.dim() == 2 and id(weight) not in others and "trainable_tokens" not in name
    ]


class Together(Optimizer):
    """Several optimizers, each with weights of its own, as one: what is scheduled, stepped and kept is that of all."""

    def __init__(self, parts: list[Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {"lr": parts[0].defaults["lr"]})
        self._share()

    def _share(self) -> None:
        first = 0
        for part in self.parts:
            part.state, last = self.state, first + len(part.param_groups)
            part.param_groups, first = self.param_groups[first:last], last

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of all."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Let each take its step."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self.parts:
            part.step()
        return loss


def learning_rates(settings: Schedule, peak: float, steps: int) -> Callable[[int], float]:
    """The factor on the peak learning rate at each step: linear warm-up, then one of Transformers' schedules.

    The first of n warm-up steps has the factor 1 / n, so that no step is without effect (Transformers' has 0).

    Args:
        settings: `schedule` in conf/train.yaml.
        peak: the learning rate at its peak.
        steps: of the whole run.
    """
    warmup = steps_of(settings.warmup, steps)
    decay = min(steps_of(settings.decay, steps), max(0, steps - warmup))
    ratio = settings.min_lr / peak if peak else 0.0
    name, more = {
        "constant": ("constant_with_warmup", {}),
        "polynomial": ("polynomial", {"lr_end": ratio, "power": settings.power}),
        "cosine_with_min_lr": ("cosine_with_min_lr", {"min_lr_rate": ratio}),
        "wsd": ("warmup_stable_decay", {"num_decay_steps": decay, "min_lr_ratio": ratio}),
    }.get(settings.name, (settings.name, {}))
    unit = SGD([torch.zeros(1)], lr=1.0)
    after: Callable[[int], float] = get_scheduler(name, unit, warmup, steps, more).lr_lambdas[0]
    if settings.name == "linear":  # Transformers' rounds its last digit otherwise

        def after(step: int) -> float:
            return max(0.0, 1 - (step - warmup) / max(1, steps - warmup))

    return lambda step: (step + 1) / warmup if step < warmup else after(step)
