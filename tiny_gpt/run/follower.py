"""The other ranks of a run on several devices: they carry out rank 0's commands (leader.py) on the same weights.

It reads its own copy of the text, and neither reads nor writes the run's folder, so that may lie on any machine.
"""

import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tiny_gpt.config import RunConfig
from tiny_gpt.data.dataloader import BatchLoader
from tiny_gpt.data.predictions import Predictions
from tiny_gpt.data.prepare import Dataset, open_stored_dataset, prepare
from tiny_gpt.data.progress import finish
from tiny_gpt.data.token_store import Tokens
from tiny_gpt.device import configure_torch, pick_device, release_memory
from tiny_gpt.distributed.network import measure_network
from tiny_gpt.distributed.presence import LostRankError
from tiny_gpt.distributed.ranks import FINISH, Ranks, SharedOutOfMemoryError, where
from tiny_gpt.errors import BadInputError, TinyGPTError
from tiny_gpt.evaluation import FixedWindows
from tiny_gpt.files import user_path
from tiny_gpt.host.signals import HeardStop
from tiny_gpt.host.torchrun import local_rank
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io.open_model import open_path
from tiny_gpt.run.leader import check_equal_weights, copy_from_leader, send_predictions, state_tensors
from tiny_gpt.run.other_text import prepare_other, tokenizer_for
from tiny_gpt.run.prepared_run import build_model
from tiny_gpt.run.resume import COMPARED_DATA
from tiny_gpt.run.sharded_state import ShardedState
from tiny_gpt.run.sharing import measure_together
from tiny_gpt.tokenizer.base import Tokenizer
from tiny_gpt.training.guard import Guard
from tiny_gpt.training.optimizer import set_regularization
from tiny_gpt.training.sharing import own_part
from tiny_gpt.training.step import train_step

Command = dict[str, Any]


def follow(ranks: Ranks, stop: HeardStop | None = None) -> None:
    """Carry out rank 0's commands until the run ends. Raises LostRankError if rank 0 is lost.

    A signal to stop is passed on to rank 0; `stop` holds one that has come before.
    """
    ranks.stop = stop or HeardStop()
    ranks.stop.listen()
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ranks.present():
            _obey_commands(ranks)
    except (KeyboardInterrupt, LostRankError):
        if not ranks.leader_has_ended:
            raise


def _obey_commands(ranks: Ranks) -> None:
    replica: Replica | None = None
    while (command := ranks.receive())["do"] != FINISH:
        if command["do"] == "measure":
            measure_together(RunConfig().with_flat(command["config"], "rank 0"), command, ranks, follower_device())
        elif command["do"] == "network":
            is_cpu = command["device"] == "cpu"
            measure_network(ranks.size, ranks.add, torch.device("cpu") if is_cpu else follower_device())
        elif command["do"] == "begin":
            replica = _begin(RunConfig().with_flat(command["config"], "rank 0"), command, ranks)
        elif replica is not None:
            replica.obey(command)


def follower_device() -> torch.device:
    """The GPU of this process, or the CPU."""
    device = pick_device("auto")
    return torch.device("cuda", local_rank()) if device.type == "cuda" else torch.device("cpu")


def _begin(config: RunConfig, command: Command, ranks: Ranks) -> "Replica | None":
    """A replica for the run of `config`, unless a problem of this or another rank ends it."""
    replica, problem = None, ""
    try:
        replica = Replica(config, command["data"], command["has_other"], ranks)
    except TinyGPTError as failure:
        problem = f"{where()}: {failure}"
    return None if any(ranks.gather(problem, after_preparation=True)) else replica


class Replica:
    """The copy of a run's model, and the text that it learns from."""

    def __init__(self, config: RunConfig, identity: dict[str, Any], has_other: bool, ranks: Ranks) -> None:
        """`identity` is that of rank 0's dataset; `has_other`: whether that rank has the text of --first, which a run
        that is done with it may have lost. Raises BadInputError where the text is another one here."""
        self.config, self.ranks, self.device = config, ranks, device_of(config)
        configure_torch(self.device, config.train.deterministic)
        self.dataset = open_same_text(config, identity)
        self.other = open_same_other_text(config, identity, self.dataset) if has_other else None
        model = build_model(config, self.dataset.tokenizer.vocab_size, self.device)
        self.model, self.optimizer, self.gradient_sum, shards = own_part(model, config.train, ranks, self.device)
        self.model.train()
        self.sharded: ShardedState | None = None
        if shards:
            self.sharded = ShardedState(self.model, shards, self.optimizer)
        self.guard = Guard(self.device)
        self.batches: BatchLoader
        self._actions: dict[str, Callable[[Command], None]] = {
            "step": self.step,
            "score": self.score,
            "state": self.take_state,
            "stage": self.set_stage,
            "gather": self.gather,
        }
        self._windows: dict[str, FixedWindows] = {}
        self._other_model: GPT | None = None

    def obey(self, command: Command) -> None:
        """Carry out one command."""
        try:
            self._actions[command["do"]](command)
        except SharedOutOfMemoryError:  # rank 0 repeats the command in smaller parts
            self.optimizer.zero_grad(set_to_none=True)
            release_memory(self.device)

    def take_state(self, command: Command) -> None:
        """Weights, moments and guard of rank 0."""
        if self.sharded:
            self.sharded.take(command["has_moments"])
        else:
            copy_from_leader(state_tensors(self.model, self.optimizer), self.ranks)
        self.guard.load_dict(command["guard"])

    def gather(self, command: Command) -> None:
        """Send rank 0 this rank's part of a weight or moment."""
        assert self.sharded, "rank 0 has a sharded model, so this one has it too"
        self.sharded.gather(command["name"])

    def set_stage(self, command: Command) -> None:
        """Read the batches of a stage, with its regularization."""
        predictions = None
        tokens = self.dataset.train if command["text"] == "own" else self.other
        assert tokens is not None, "rank 0 has the other text, so this one has it"
        if command["dropout"] is not None:
            set_regularization(self.model, self.optimizer, command["dropout"], command["weight_decay"])
        if command["predictions"]:
            shape, vocab_size = command["predictions"], self.dataset.tokenizer.vocab_size
            ids_PN = np.empty(shape, dtype=np.min_scalar_type(vocab_size - 1))
            predictions = Predictions(ids_PN, np.empty(shape, dtype=np.float16), command["teacher_weight"])
            send_predictions(predictions, self.ranks)
        train, model = self.config.train, self.model
        self.batches = BatchLoader(
            tokens.all_ids,
            model.config.block_size,
            train.batch_size,
            command["seed"],
            self.device,
            command["token_noise"],
            predictions,
        )

    def step(self, command: Command) -> None:
        """One training step."""
        train_step(
            self.model,
            self.optimizer,
            self.batches.batch(command["batch"]).cut(command["length"]),
            self.config.train,
            command["step"],
            command["rate"],
            n_micro_batches=command["n_micro_batches"],
            guard=self.guard,
            gradient_sum=self.gradient_sum,
            ranks=self.ranks,
        )

    def score(self, command: Command) -> None:
        """This rank's part of an evaluation."""
        model = self.model
        if self.sharded:
            if command["is_other_model"]:
                self.sharded.take(has_moments=False)
        elif command["is_other_model"]:
            if self._other_model is None:
                self._other_model = build_model(self.config, model.vocab_size, self.device)
            model = self._other_model
            copy_from_leader(list(model.state_dict().values()), self.ranks)
        if not self.sharded:
            check_equal_weights(model, self.ranks)
        key = repr(sorted(command.items()))
        if key not in self._windows:
            tokens = self.dataset.train if command["split"] == "train" else self.dataset.val
            self._windows[key] = FixedWindows(
                tokens.ids, model.config.block_size, command["batch_size"], command["max_tokens"], command["backend"]
            )
        self._windows[key].loss_and_error(model, ranks=self.ranks)


def device_of(config: RunConfig) -> torch.device:
    """The device of this rank in a run whose rank 0 trains on that of `config`."""
    return torch.device("cpu") if config.train.device == "cpu" else follower_device()


def open_same_text(config: RunConfig, identity: dict[str, Any]) -> Dataset:
    """Rank 0's text: its token store, on the same machine or drive, or else the text as it is found here.

    Raises BadInputError where that is another one.
    """
    stored = open_stored_dataset(config.data, str(identity.get("store")))
    if stored is not None:
        return stored
    start_from = config.train.start_from
    tokenizer: Tokenizer | None
    if start_from:
        tokenizer = open_path(user_path(start_from), torch.device("cpu")).tokenizer
    else:
        tokenizer = finish(tokenizer_for(config))
    dataset = finish(prepare(config.data, config.model.block_size, tokenizer))
    differences = [
        f"{label} {dataset.identity[name]} instead of {identity.get(name)}"
        for name, label in COMPARED_DATA.items()
        if dataset.identity[name] != identity.get(name)
    ]
    if differences:
        raise BadInputError(
            f"the text {', '.join(config.data.data)} is not the same as on rank 0: {'; '.join(differences)}.\n"
            "Copy it to every machine, or put it on a drive that all see",
            code="rank-text-differs",
        )
    return dataset


def open_same_other_text(config: RunConfig, identity: dict[str, Any], dataset: Dataset) -> Tokens | None:
    """Rank 0's text of --first; None if the run has none."""
    store = identity.get("first_store")
    if not store:
        return None
    stored = open_stored_dataset(config.data, str(store))
    if stored is not None:
        return stored.train
    other = finish(prepare_other(config, dataset))
    if other.identity["store"] != store:
        raise BadInputError("the text of --first is not the same as on rank 0", code="rank-first-text-differs")
    return other.train
