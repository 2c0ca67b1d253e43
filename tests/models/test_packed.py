"""Packed rows and padded branches give what separate forward passes give."""

import inspect
from types import SimpleNamespace

import pytest
import torch

from aira.data.trees import Tree, pack, pad
from aira.models.forward import hidden_states, keys_and_values
from aira.models.head import log_probs


def tree(prefix, *branches):
    whole = [prefix + branch for branch in branches]
    return Tree(whole, [[True] * len(tokens) for tokens in whole])


TREES = [
    tree([11, 12, 13], [14, 15, 16], [14, 17, 18, 19]),  # two branches that share one token more than the prompt
    tree([], [25, 26, 27, 28, 29, 30]),
    tree([33, 34], [39], [38, 37], [36, 35, 34]),
    tree([41, 42], [43], [43, 44]),  # one branch is the beginning of the other
]


def separate(model, tokens):
    """Log-probs of all tokens but the first, by one ordinary forward pass."""
    ids = torch.tensor([tokens])
    return model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]


def test_packed_trees_equal_separate_passes(causal):
    """Catches a wrong mask, position, source or target index, and any leak between trees or branches."""
    row = pack(TREES)
    packed = log_probs(hidden_states(causal, row)[row.source], row.target, causal.get_output_embeddings())
    expected = torch.cat([separate(causal, tokens) for item in TREES for tokens in item.branches])
    assert expected.std() > 0.3  # the comparison would see a difference
    torch.testing.assert_close(packed, expected, atol=1e-5, rtol=1e-5)


def test_gradients_equal_separate_passes(causal):
    """Catches a backward pass that differs from the forward one, such as a gradient lost between branches."""
    causal.train()  # all dropout is off by the next line; gradients are those of training
    for module in causal.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    causal.config.dropout = causal.config.attention_dropout = 0.0
    for module in causal.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    row = pack(TREES)
    log_probs(hidden_states(causal, row)[row.source], row.target, causal.get_output_embeddings()).sum().backward()
    packed = [parameter.grad.clone() for parameter in causal.parameters() if parameter.grad is not None]
    causal.zero_grad()
    torch.cat([separate(causal, tokens) for item in TREES for tokens in item.branches]).sum().backward()
    expected = [parameter.grad for parameter in causal.parameters() if parameter.grad is not None]
    for ours, theirs in zip(packed, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5 * max(1.0, theirs.abs().max().item()), rtol=1e-4)


def test_a_branch_ends_where_its_last_token_is(causal):
    """Catches a score that is read at another position than the branch's last token."""
    row = pack(TREES)
    found = hidden_states(causal, row)[row.end]
    whole = [tokens for item in TREES for tokens in item.branches]
    expected = [causal.base_model(torch.tensor([tokens])).last_hidden_state[0, -1] for tokens in whole]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=1e-4)
    assert row.tree.tolist() == [0, 0, 1, 2, 2, 2, 3, 3]


def other_release(model, name):
    """The model as a release of Transformers has it that knows its cache by one name alone, and returns none."""
    forward = model.base_model.forward
    theirs = {"cache", "past_key_values"} & set(inspect.signature(forward).parameters)

    def earlier(input_ids, past_key_values=None, **rest):
        return changed(input_ids, past_key_values, **rest)

    def later(input_ids, cache=None, **rest):
        return changed(input_ids, cache, **rest)

    def changed(input_ids, cache, **rest):
        assert rest.keys() <= {"attention_mask", "position_ids", "use_cache", "trees", "cached"}
        found = forward(input_ids=input_ids, **dict.fromkeys(theirs, cache), **rest)
        return SimpleNamespace(last_hidden_state=found.last_hidden_state)

    model.base_model.forward = {"past_key_values": earlier, "cache": later}[name]


@pytest.mark.parametrize("name", ["past_key_values", "cache", None])
def test_a_common_beginning_is_computed_once(causal, name):
    """Catches a wrong position, mask or index behind cached tokens, a last token that is missed, and a name of
    Transformers' for its cache that only some of its releases have."""
    if causal.config._attn_implementation == "sdpa":
        return
    common = [51, 52, 53, 54, 55]
    trees = [
        tree([11, 12], [13, 14], [15, 16, 17]),
        tree([21], [22, 23, 24]),
        tree([31, 32, 33], [34], [35], [36, 37]),  # branches of a single token: both are read off the prefix
    ]
    whole = [
        Tree([common + tokens for tokens in item.branches], [[False] * 6 + flags[1:] for flags in item.scored])
        for item in trees
    ]
    row = pack(whole, cached=len(common), last=False)
    assert row.input_ids.shape[1] == (2 + 1 + 2) + 3 + (3 + 0 + 0 + 1)
    with torch.no_grad():
        expected = [separate(causal, tokens)[5:] for item in whole for tokens in item.branches]
        if name:
            other_release(causal, name)
        hidden = hidden_states(causal, row, keys_and_values(causal, common))
        found = log_probs(hidden[row.source], row.target, causal.get_output_embeddings())
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=1e-5)


def test_a_tree_does_not_see_its_neighbours(causal):
    """Catches attention that crosses from one tree into another."""
    alone, beside = pack(TREES[1:2]), pack(TREES)
    start, end, *_ = beside.spans[1]
    torch.testing.assert_close(
        hidden_states(causal, alone), hidden_states(causal, beside)[start:end], atol=1e-5, rtol=1e-5
    )


def test_padded_branches_equal_separate_passes(encoder):
    """Catches padding that is attended to, and a first-token index that is off by a row."""
    row = pad(TREES, pad_id=encoder.config.pad_token_id)
    whole = [tokens for item in TREES for tokens in item.branches]
    expected = [encoder(torch.tensor([tokens])).last_hidden_state[0, 0] for tokens in whole]
    torch.testing.assert_close(hidden_states(encoder, row)[row.end], torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_segments_begin_after_the_first_separator():
    """Catches segment ids that start at the separator, or that mark padding."""
    row = pad([Tree([[0, 5, 6, 9, 7, 9], [0, 5, 9, 8, 9]], [[False] * 6, [False] * 5])], pad_id=2, separator_id=9)
    assert row.token_type_ids.tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]]
    assert row.attention_mask.tolist() == [[1] * 6, [1] * 5 + [0]]
