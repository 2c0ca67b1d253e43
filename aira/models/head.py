"""Log-probabilities and losses as pure functions. Imports torch alone."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

CHUNK = 256
"""Positions whose logits exist at once: 256 positions x 50 000 tokens x 4 bytes is 50 MB."""

Grads = list[Tensor | None]


def chunks(length: int) -> Iterator[slice]:
    """Slices of at most `CHUNK` positions that cover `length` of them."""
    return (slice(start, start + CHUNK) for start in range(0, length, CHUNK))


def _chunk(
    hidden: Tensor, targets: Tensor, weights: Tensor | None, head: nn.Module, parameters: Sequence[Tensor], grads: Grads
) -> tuple[Tensor, Any]:
    """Log-probs of one chunk, and with `weights` the gradient of sum(weights * log_probs).

    The gradient of log softmax(z)[t] with respect to z is onehot(t) - softmax(z).

    Returns:
        [N] log-probs, and the gradient for `hidden`, or None. Gradients for `parameters` are added to `grads`.
    """
    with torch.set_grad_enabled(weights is not None):
        inputs = hidden.detach().requires_grad_(weights is not None)
        logits = head(inputs)
    values = logits.detach().float()
    log_z = values.logsumexp(-1)
    log_probs = values.gather(1, targets[:, None])[:, 0] - log_z
    if weights is None:
        return log_probs, None
    grad = torch.exp(values - log_z[:, None]).mul_(-weights[:, None])
    grad[torch.arange(len(targets), device=grad.device), targets] += weights
    grad_inputs, *through = torch.autograd.grad(logits, (inputs, *parameters), grad.to(logits.dtype))
    for i, new in enumerate(through):
        if grads[i] is None:
            grads[i] = new.to(torch.promote_types(new.dtype, torch.float32))  # sharded weights may be in half precision
        else:
            grads[i].add_(new)  # type: ignore[union-attr]
    return log_probs, grad_inputs


class _LogProbs(torch.autograd.Function):
    """Log-probs of target tokens; the backward pass computes each chunk's logits again instead of keeping them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: nn.Module, *parameters: Tensor) -> Tensor:
        device = hidden.device.type
        ctx.autocast = {
            "device_type": device,
            "enabled": torch.is_autocast_enabled(device),
            "dtype": torch.get_autocast_dtype(device),
        }
        ctx.head, ctx.parameters = head, parameters
        ctx.save_for_backward(hidden, targets)
        with torch.autocast(**ctx.autocast, cache_enabled=False):  # a weight cast without gradient must not be kept
            parts = [_chunk(hidden[part], targets[part], None, head, (), [])[0] for part in chunks(len(targets))]
        return torch.cat(parts) if parts else hidden.new_empty(0, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        hidden, targets = ctx.saved_tensors
        grads: Grads = [None] * len(ctx.parameters)
        grad_hidden = torch.empty_like(hidden)
        with torch.autocast(**ctx.autocast):
            for part in chunks(len(targets)):
                grad_hidden[part] = _chunk(
                    hidden[part], targets[part], grad_output[part], ctx.head, ctx.parameters, grads
                )[1]
        return (grad_hidden, None, None, *grads)


class _CrossEntropy(torch.autograd.Function):
    """The summed negative log-likelihood; its gradient is taken in the forward pass, from logits that exist anyway."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, head: nn.Module, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        train = any(ctx.needs_input_grad)
        weights: Any = torch.full((len(targets),), -1.0, device=hidden.device) if train else None
        ctx.grads = [None] * len(parameters)
        ctx.grad_hidden = torch.empty_like(hidden) if train else None
        log_probs = torch.empty(len(targets), device=hidden.device, dtype=torch.float32)
        for part in chunks(len(targets)):
            log_probs[part], grad = _chunk(
                hidden[part], targets[part], weights[part] if train else None, head, parameters, ctx.grads
            )
            if train:
                ctx.grad_hidden[part] = grad
        ctx.mark_non_differentiable(log_probs)
        return -log_probs.sum(), log_probs

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Any) -> tuple[Any, ...]:
        grads = [None if grad is None else grad.mul_(grad_loss) for grad in (ctx.grad_hidden, *ctx.grads)]
        return (grads[0], None, None, *grads[1:])


class Logits(nn.Module):
    """An LM head that is no plain matrix: what is done before and after it, as Transformers' own code does.

    Args:
        matrix: the output embeddings.
        before: of the hidden states, as ModernBERT's decoder has.
        factor: of the logits, as Cohere and Granite have.
        cap: logits z become cap * tanh(z / cap), as in Gemma 2 (2024, section 2).
    """

    def __init__(self, matrix: nn.Module, before: nn.Module | None, factor: float, cap: float | None) -> None:
        super().__init__()
        self.matrix, self.before, self.factor, self.cap = matrix, before, factor, cap

    def forward(self, hidden: Tensor) -> Tensor:
        """[N, hidden size] to [N, vocabulary]."""
        logits: Tensor = self.matrix(hidden if self.before is None else self.before(hidden)) * self.factor
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def lm_head(model: Any) -> nn.Module:
    """What makes logits of a causal model's hidden states.

    Args:
        model: of Transformers, with an LM head.
    """
    matrix: nn.Module = model.get_output_embeddings()
    config = model.config
    before = getattr(model, "head", None) if config.model_type == "modernbert-decoder" else None
    factor = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return matrix if before is None and factor == 1.0 and cap is None else Logits(matrix, before, factor, cap)


def log_probs(hidden: Tensor, targets: Tensor, head: nn.Module) -> Tensor:
    """Log-probability of each target token, without ever holding the logits of all positions.

    Args:
        hidden: [N, hidden size] hidden states at the positions that predict.
        targets: [N] token ids.
        head: the LM head; called as a module, so it may be sharded or carry adapters.

    Returns:
        [N] float32, natural logarithms.
    """
    found: Tensor = _LogProbs.apply(hidden, targets, head, *_trained(head))  # type: ignore[no-untyped-call]
    return found


def cross_entropy(hidden: Tensor, targets: Tensor, head: nn.Module) -> tuple[Tensor, Tensor]:
    """Summed negative log-likelihood of the target tokens, without ever holding the logits of all positions.

    A third of the LM head's work is saved against `log_probs`; it can be differentiated once. Not so under autocast to
    float16, whose small gradients exist only once the loss is scaled, which is after this.

    Args:
        hidden, targets, head: as for `log_probs`.

    Returns:
        The sum over tokens, a scalar, and the [N] log-probs without gradient, in float32.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
        values = log_probs(hidden, targets, head)
        return -values.sum(), values.detach()
    found: tuple[Tensor, Tensor] = _CrossEntropy.apply(hidden, targets, head, *_trained(head))  # type: ignore[no-untyped-call]
    return found


def branch_sums(values: Tensor, branch: Tensor, branches: int) -> Tensor:
    """Sum over each branch's scored tokens.

    Args:
        values: [N], one a scored token.
        branch: [N] the branch that the token belongs to.
        branches: their number, B.

    Returns:
        [B].
    """
    return values.new_zeros(branches).index_add(0, branch, values)


def _trained(head: nn.Module) -> list[Tensor]:
    return [parameter for parameter in head.parameters() if parameter.requires_grad]
