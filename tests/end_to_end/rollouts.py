"""A source of batches that generates them: answers to fixed prompts, drawn from the policy or from a seed."""

import torch

from aira.data.batches import BatchSource, Generated, generated_batch
from aira.data.trees import Tree, pack
from aira.models.forward import hidden_states

PROMPTS = [f"<|startofinstruction|>What is {i} + 3?<|endofinstruction|>" for i in range(6)]


class Rollouts(BatchSource):
    """`path=policy`: three tokens by the model as it is at the step; `path=seed`: a few, or many, at random."""

    key = rows_key = "rollouts"
    notices = ("Answers are generated.",)

    def __init__(self, tokenizer, *, path, batch_size, tokens_per_row, **others):
        super().__init__()
        self.path, self.batch_size, self.tokens_per_row = path, batch_size, tokens_per_row
        self.train = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in PROMPTS]
        self.validation = self.train[:2]
        self.words = range(20, len(tokenizer))

    def train_dataloader(self):
        return Generated(self.rollout, self.trainer.max_steps, self.trainer.global_step)

    def val_dataloader(self):
        return Generated(self.held_out, 1)

    def held_out(self, number):
        places = self.share(range(len(self.validation)))
        return self.batch(number, {place: self.tree(self.validation[place], self.words[:3]) for place in places})

    def rollout(self, step):
        assert step == self.trainer.global_step, "a batch is generated ahead of its step"
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        return self.batch(step, {place: self.answered(place) for place in self.share(places)})

    def share(self, places):
        return places[self.trainer.global_rank :: self.trainer.world_size]

    def answered(self, place):
        draw = torch.Generator().manual_seed(place)
        ids = self.train[place % len(PROMPTS)]
        if self.path == "seed":
            count = 2 if place % 2 else 40  # of two ranks, one needs more rows than the other
            return self.tree(ids, [self.words[i] for i in torch.randint(len(self.words), (count,), generator=draw)])
        model = self.trainer.lightning_module.whole_model()
        answer = []
        for _ in range(3):
            row = pack([self.tree(ids, answer)])
            with torch.no_grad():
                logits = model.get_output_embeddings()(hidden_states(model, row)[-1])
            answer.append(int(torch.multinomial(logits.softmax(-1), 1, generator=draw)))
        return self.tree(ids, answer)

    def tree(self, ids, answer):
        return Tree([[*ids, *answer]], [[False] * len(ids) + [True] * len(answer)])

    def batch(self, step, trees):
        made = list(trees.values())
        return generated_batch(
            self.trainer, step, made, list(trees), self.tokens_per_row, lambda chosen: pack([made[i] for i in chosen])
        )
