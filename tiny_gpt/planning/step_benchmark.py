"""Whole training steps on random tokens, to find out whether a machine can do them and how fast."""

from dataclasses import replace

import torch

from tiny_gpt.config import RunConfig
from tiny_gpt.data.dataloader import Batch
from tiny_gpt.device import PRECISIONS
from tiny_gpt.distributed.ranks import ALONE, Ranks
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.lora import add_adapters
from tiny_gpt.planning.memory import LORA_RANKS
from tiny_gpt.training.cuda_graph import make_cuda_graph_update
from tiny_gpt.training.guard import Guard
from tiny_gpt.training.schedule import learning_rate_at
from tiny_gpt.training.sharing import is_sharded, own_part
from tiny_gpt.training.step import train_step

# The benchmark is a run of this many steps, of which the last is repeated.
STEPS = 50
# Weights of a sharded model, which is made without values.
INITIAL_STD = 0.02


class StepBenchmark:
    """A model, an optimizer and one random batch, for a config whose backend and precision are chosen."""

    def __init__(self, config: RunConfig, vocab_size: int, device: torch.device, ranks: Ranks = ALONE) -> None:
        train = config.train
        # A counted budget: with a timed one the learning rate would depend on the clock.
        self.config = replace(config, train=replace(train, for_="", until="", tokens=0, data_epochs=0.0, steps=STEPS))
        home = torch.device("meta") if is_sharded(train, ranks) else device
        with torch.device("meta" if home.type == "meta" else "cpu"):
            model = GPT(config.model, vocab_size, PRECISIONS[train.precision])
        model = model.to(home).train()
        model.recomputes = train.recompute
        if train.uses_lora:
            add_adapters(model, train.lora_rank or LORA_RANKS[0])
        self.ranks, self.guard = ranks, Guard(device)
        self.model, self.optimizer, self.gradient_sum, shards = own_part(model, train, ranks, device)
        for own in shards.parameters.values() if shards else ():
            torch.nn.init.normal_(own, std=INITIAL_STD)
        self.cuda_graph = make_cuda_graph_update(self.model, self.optimizer, train, self.guard)
        shape = (2, train.batch_size, config.model.block_size)
        self.batch = Batch(*torch.randint(vocab_size, shape).to(device))
        self.n_done = 0

    def step(self) -> None:
        """Run one step; on a GPU, put it into the queue."""
        step = min(self.n_done, STEPS - 1)
        train = self.config.train
        train_step(
            self.model,
            self.optimizer,
            self.batch,
            train,
            step,
            learning_rate_at(step, train),
            guard=self.guard,
            gradient_sum=self.gradient_sum,
            ranks=self.ranks,
            cuda_graph=self.cuda_graph,
        )
        self.n_done += 1

    def warm_up(self) -> None:
        """Run the first steps, which compile, allocate and record CUDA graphs."""
        self.step()
        while self.cuda_graph is not None and not self.cuda_graph.is_recorded:
            self.step()
