"""Train the demo model that ships with aipc: a Phi-3 of less than four million parameters.

    python tools/train_demo.py --out src/aipc/demo

needs torch (CPU), tokenizers and numpy; nothing is downloaded. Questions, answers and their
variation are read from tools/demo_data. A CPU with bfloat16 arithmetic trains in about
20 minutes on two cores; another one takes float32 and longer. Seeds are fixed, so a machine gives
the same model again; another machine's rounding gives a slightly different one.

To change sizes or rates without looking at the held-out questions, use --validate 2: it leaves the
last two questions of every topic out of the training and measures on those instead.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from tokenizers import Tokenizer
from torch import Tensor, nn

from demo_training import folder, measure
from demo_training.chat import IGNORED, ChatSampler, Formatter, Row
from demo_training.network import Precision, Shape, TinyPhi3
from demo_training.topics import Topic, Variation, read_topics, read_variation
from demo_training.vocabulary import train_tokenizer

log = logging.getLogger("train_demo")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What training consists of.

    tokens_per_step   about this many in each batch
    quantise_from     the share of the steps after which weights are also trained as int4
    """

    steps: int = 1800
    tokens_per_step: int = 3072
    peak_rate: float = 2e-3
    weight_decay: float = 0.1
    dropout: float = 0.1
    warm_up: int = 100
    average: float = 0.998
    quantise_from: float = 0.6
    topic_weight: float = 1.0
    seed: int = 3


class Trainer:
    """The network, its running average, and the steps that change both."""

    def __init__(self, recipe: Recipe, topics: list[Topic], tokenizer: Tokenizer) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.rng = random.Random(recipe.seed)
        variation = Variation(topics, read_variation(), self.rng)
        self.sampler = ChatSampler(topics, tokenizer, variation, self.rng)
        self.network = TinyPhi3(Shape(), recipe.dropout)
        self.averaged = copy.deepcopy(self.network).eval()
        # Says which topic a question is about. It only helps training and is thrown away.
        self.topic_head = nn.Linear(Shape().hidden_size, len(topics))
        self.optimizer = self._optimizer()
        # bfloat16 halves nothing but time, and only where the CPU multiplies it itself.
        self.autocast = torch.ops.mkldnn._is_mkldnn_bf16_supported()

    def train(self) -> None:
        """All steps."""
        begin = time.perf_counter()
        tokens = 0
        for step, rows in zip(range(self.recipe.steps), self._batches(), strict=False):
            tokens += sum(len(row.ids) for row in rows)
            loss = self._step(step, rows)
            if (step + 1) % 100 == 0:
                seconds = time.perf_counter() - begin
                log.info(
                    "step %d, loss %.3f, %.0f tokens/s, %.0f s", step + 1, loss, tokens / seconds, seconds
                )

    def _optimizer(self) -> torch.optim.Optimizer:
        parameters = [*self.network.parameters(), *self.topic_head.parameters()]
        groups = [
            {"params": [p for p in parameters if p.ndim == 2], "weight_decay": self.recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.recipe.peak_rate, betas=(0.9, 0.98), fused=True)

    def _batches(self) -> Iterator[list[Row]]:
        """Endless batches, each of rows of about the same length: little of it is padding.

        Most rows are single questions, where topics are told apart; whole chats teach the answers.
        """
        while True:
            rows = [self.sampler.question(answer_tokens=6) for _ in range(800)]
            rows += [self.sampler.chat(max_tokens=96, max_turns=1) for _ in range(160)]
            rows += [self.sampler.chat(max_tokens=192, max_turns=9) for _ in range(32)]
            rows += [self.sampler.chat(max_tokens=512, max_turns=9) for _ in range(5)]
            if self.rng.random() < 0.3:
                rows.append(self.sampler.chat(max_tokens=1536, max_turns=99))
            batches: list[list[Row]] = [[]]
            for row in sorted(rows, key=lambda row: len(row.ids)):
                if (len(batches[-1]) + 1) * len(row.ids) > self.recipe.tokens_per_step and batches[-1]:
                    batches.append([])
                batches[-1].append(row)
            self.rng.shuffle(batches)
            yield from batches

    def _step(self, step: int, rows: list[Row]) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(step)
        self.network.set_precision(self._precision(step))
        self.network.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss = self._loss(rows)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        keep = min(self.recipe.average, (step + 1) / (step + 10))
        with torch.no_grad():
            for mean, weight in zip(self.averaged.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(weight, 1 - keep)
        return loss.item()

    def _loss(self, rows: list[Row]) -> Tensor:
        ids, targets = measure.pad([(row.ids, row.targets) for row in rows])
        hidden = self.network.hidden(ids)
        known = targets != IGNORED
        logits = F.linear(hidden[known], self.network.embedding())
        places = [(n, place, topic) for n, row in enumerate(rows) for place, topic in row.topics]
        row, place, topic = torch.tensor(places).unbind(-1)
        guesses = self.topic_head(hidden[row, place])
        answer_loss = F.cross_entropy(logits.float(), targets[known])
        topic_loss = F.cross_entropy(guesses.float(), topic, label_smoothing=0.1)
        return answer_loss + self.recipe.topic_weight * topic_loss

    def _rate(self, step: int) -> float:
        progress = step / self.recipe.steps
        decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
        return self.recipe.peak_rate * min(1.0, (step + 1) / self.recipe.warm_up) * decay

    def _precision(self, step: int) -> Precision:
        if step < self.recipe.quantise_from * self.recipe.steps:
            return "fp16"
        return self.rng.choices(measure.PRECISIONS, (0.35, 0.45, 0.2))[0]


def texts_for_tokenizer(topics: list[Topic]) -> list[str]:
    """What merges are learned from: everything that is read or written in training."""
    variation = read_variation()
    texts = [question for topic in topics for question in topic.questions]
    texts += [text.lower() for text in texts]
    texts += [topic.answer for topic in topics for _ in range(8)]
    return texts + variation["prefixes"] + variation["system_prompts"]["train"]


def leave_out(topics: list[Topic], count: int) -> list[Topic]:
    """The topics with their last trained questions held out in place of the held-out ones."""
    return [replace(t, questions=t.questions[:-count], held_out=t.questions[-count:]) for t in topics]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--validate", type=int, default=0, metavar="N", help="leave N questions a topic out")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)

    topics = read_topics()
    if args.validate:
        topics = leave_out(topics, args.validate)
    tokenizer = train_tokenizer(texts_for_tokenizer(topics), Shape().vocab_size)
    begin = time.perf_counter()
    recipe = Recipe(steps=args.steps)
    trainer = Trainer(recipe, topics, tokenizer)
    trainer.train()
    seconds = time.perf_counter() - begin

    folder.write_model(args.out, trainer.averaged, tokenizer)
    network = folder.read_network(args.out)
    prompts = read_variation()["system_prompts"]["held_out"]
    scores = measure.score(network, tokenizer, topics, prompts, recipe.seed)
    measured = {"topics": len(topics), "training_s": round(seconds), "scores": scores}
    folder.write_report(args.out, network, tokenizer, measured)
    for kind, shares in scores.items():
        log.info("%s: %s", kind, ", ".join(f"{name} {share}" for name, share in shares.items()))
    if args.validate:
        log_wrong(network, tokenizer, measure.held_out(topics))


def log_wrong(network: TinyPhi3, tokenizer: Tokenizer, cases: list[measure.Case]) -> None:
    """What int4 answers where it is wrong."""
    for case in measure.wrong_cases(network, tokenizer, cases, "int4"):
        ids = measure.prompt_ids(Formatter(tokenizer), case)
        log.info("%s | %s -> %s", case.topic.id, case.question, measure.generate(network, tokenizer, ids))


if __name__ == "__main__":
    main()
