"""A linear classifier that learns beside the method."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lit_ssl.checks import check_integer, check_positive
from lit_ssl.distributed import all_reduce_sum, rank, world_size
from lit_ssl.random import integers, resolve_seed, step_key

from .accuracy import LabelledAccuracy
from .features import represent
from .single import SingleCallback

__all__ = ["OnlineLinearProbe"]


class _Probe(nn.Module):
    """Standardisation by running statistics, then a linear layer that starts at zero, so that no number is drawn.

    Statistics and gradients are those of all ranks' rows together: every rank holds the same probe.
    """

    mean: Tensor
    var: Tensor
    updates: Tensor

    def __init__(self, features: int, classes: int, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, features, device=device))
        self.bias = nn.Parameter(torch.zeros(classes, device=device))
        self.register_buffer("mean", torch.zeros(features, device=device))
        self.register_buffer("var", torch.ones(features, device=device))
        self.register_buffer("updates", torch.zeros((), device=device))

    def standardised(self, x: Tensor) -> Tensor:
        return (x - self.mean) * (self.var + 1e-5 * self.var.mean() + 1e-30).rsqrt()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.standardised(x), self.weight, self.bias)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Moves the statistics: the mean of the first ten batches, from then on a tenth towards each new one."""
        centred = x - self.mean
        sums = all_reduce_sum(torch.cat([centred.sum(0), centred.square().sum(0), x.new_full((1,), len(x))]))
        shift, square = (sums[:-1] / sums[-1].clamp_min(1)).chunk(2)
        self.updates += 1
        rate = (1 / self.updates).clamp_min(0.1)
        self.var.lerp_((square - shift.square()).clamp_min(0) + (1 - rate) * shift.square(), rate)
        self.mean += rate * shift

    @torch.no_grad()
    def differentiate(self, x: Tensor, label: Tensor) -> Tensor:
        """Sets the gradient of the mean cross-entropy over labelled rows; returns logits (B, K).

        Written out: a callback that runs no autograd cannot touch the graph, the hooks or the scaler of the method.
        """
        x = self.standardised(x)
        logits = nn.functional.linear(x, self.weight, self.bias)
        known = (label >= 0).to(x.dtype)[:, None]
        residual = logits.softmax(1).scatter_add(1, label.clamp_min(0)[:, None], -torch.ones_like(known)) * known
        sums = torch.cat([(residual.mT @ x).flatten(), residual.sum(0), known.sum()[None]])
        sums = all_reduce_sum(sums)
        mean = sums[:-1] / sums[-1].clamp_min(1)
        self.weight.grad = mean[: self.weight.numel()].view_as(self.weight).clone()
        self.bias.grad = mean[self.weight.numel() :].clone()
        return logits


class OnlineLinearProbe(SingleCallback):
    """Trains a linear classifier on the embeddings of clean images while the method trains, and logs its accuracy.

    It works on ``pl_module.represent`` (evaluation mode, no gradient), owns its layer and its optimizer (Adam, constant
    rate), adds nothing to the loss, registers nothing on the module and draws no global random number. Of files with
    ``clean_images=False`` it learns from what the first view crops, in place of clean images. Rows whose label is -1
    are ignored. Of several validation loaders it takes the first. Where the data module's labelled images are not those
    it trains on (STL10), they are drawn
    by (seed, step). Layer, optimizer and statistics are in the checkpoint.

    Logs ``probe/train_acc`` (running mean of the epoch over this rank's rows) and ``probe/val_acc`` (all ranks).
    A probe that follows a moving encoder trails the converged one of ``lit_ssl.evaluation``, which reports use.

    Args:
        every_n_steps: act on every n-th batch; 1 costs one clean forward pass of every batch. Default 4.
        num_classes: number of classes; by default the data module's.
        lr: Adam's learning rate on standardised features; default 3e-3.
        weight_decay: L2 penalty, default 0.
        batch_size: labelled images a step over all ranks, where they are not those of the batch; default 256.
        seed: of that draw; None takes that of ``seed_everything``, or 0.
        name: in front of the names of metrics; several probes of one run need different ones. Default ``probe``.

    Raises:
        ValueError: an argument out of range, two probes of one name, a label that is no class (on a GPU when the epoch
            ends, so that no step waits), or a checkpoint whose probe has another shape.
    """

    def __init__(
        self,
        every_n_steps: int = 4,
        num_classes: int | None = None,
        lr: float = 3e-3,
        weight_decay: float = 0.0,
        batch_size: int = 256,
        seed: int | None = None,
        name: str = "probe",
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError(f"name must be a string that is not empty, got {name!r}")
        self.name = name
        check_integer("every_n_steps", every_n_steps)
        check_integer("num_classes", num_classes, 2, optional=True)
        check_positive("lr", lr)
        check_positive("weight_decay", weight_decay, zero=True)
        check_integer("batch_size", batch_size)
        if seed is not None:
            resolve_seed(seed)
        self.every_n_steps, self.num_classes, self.lr = every_n_steps, num_classes, lr
        self.weight_decay, self.batch_size, self.seed = weight_decay, batch_size, seed
        self.probe: _Probe | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.batches = 0  # of training, seen so far
        self._train, self._val = LabelledAccuracy(sync_on_compute=False), LabelledAccuracy()
        self._pending: dict[str, Any] | None = None
        self._greatest: Tensor | None = None  # label since it was looked at last

    @property
    def state_key(self) -> str:
        settings = {"lr": self.lr, "weight_decay": self.weight_decay, "every_n_steps": self.every_n_steps}
        return self._generate_state_key(name=self.name, **settings)  # two of a run are told apart

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Find the state of the one probe of this name, whatever its settings were, or of older files' only one."""
        states, kind = checkpoint.get("callbacks", {}), type(self).__qualname__
        own = [key for key in states if key == kind or str(key).startswith(f"{kind}{{'name': {self.name!r},")]
        if self.state_key not in states and len(own) == 1:
            states[self.state_key] = states[own[0]]

    # Building: networks do not exist in ``setup``, and state is loaded before ``on_fit_start``.

    def _classes(self, trainer: Trainer) -> int | None:
        datamodule: Any = getattr(trainer, "datamodule", None)
        classes = self.num_classes or getattr(datamodule, "num_classes", None)
        if datamodule is not None and not (hasattr(datamodule, "labelled_set") or hasattr(datamodule, "train_set")):
            datamodule = None  # one that serves loaders: their batches say whether they have labels
        if classes is None and datamodule is None:
            rank_zero_warn(
                "OnlineLinearProbe is off: a plain loader does not tell the number of classes; "
                "give OnlineLinearProbe(num_classes=...)"
            )
        elif classes is None or (datamodule is not None and self._labelled_set(trainer) is None):
            rank_zero_info("OnlineLinearProbe is off: the data has no labels")
            return None
        return classes

    @staticmethod
    def _labelled_set(trainer: Trainer) -> Any:
        datamodule = getattr(trainer, "datamodule", None)
        return getattr(datamodule, "labelled_set", getattr(datamodule, "train_set", None))

    def _build(self, trainer: Trainer, pl_module: Any) -> None:
        self.probe = self.optimizer = None
        self.batches = 0
        classes = self._classes(trainer)
        if classes is None:
            return
        with torch.inference_mode(False):
            self.probe = _Probe(pl_module.num_features, classes, pl_module.device)
            self.optimizer = torch.optim.Adam(self.probe.parameters(), lr=self.lr, weight_decay=self.weight_decay)
            for metric in (self._train, self._val):
                metric.to(pl_module.device).reset()
            if self._pending is not None:
                self._load(self._pending)
                self._pending = None

    def state_dict(self) -> dict[str, Any]:
        if self.probe is None or self.optimizer is None:
            return self._pending or {}
        state = {
            "batches": self.batches,
            "probe": self.probe.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "train": {"correct": self._train.correct, "total": self._train.total},
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not state_dict:
            return
        self._pending = state_dict
        if self.probe is not None and self.optimizer is not None:
            self._load(state_dict)

    def _load(self, state: dict[str, Any]) -> None:
        assert self.probe is not None
        assert self.optimizer is not None
        saved, own = tuple(state["probe"]["weight"].shape), tuple(self.probe.weight.shape)
        if saved != own:
            raise ValueError(f"the checkpoint's probe has shape {saved} (classes, features), this run needs {own}")
        self.batches = state["batches"]
        self.probe.load_state_dict(state["probe"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group.update(lr=self.lr, weight_decay=self.weight_decay)
        self._train.reset()
        if state["train"]["total"] > 0:
            self._train.add(**state["train"])

    # Training

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._build(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._train.reset()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        acts = self.batches % self.every_n_steps == 0
        self.batches += 1
        if self.probe is None or self.optimizer is None:
            return
        if acts:
            image, label = self._labelled(trainer, pl_module, batch)
            label = self._checked(label, now=label.device.type == "cpu")
            x = represent(pl_module, image)
            self.probe.observe(x)
            logits = self.probe.differentiate(x, label)
            self.optimizer.step()
            self._train.update(logits.argmax(1), label)
        # A row shows the latest value, also between two acts: so does that of a run which resumed there.
        if acts or (self._train.update_called and trainer._logger_connector.should_update_logs):
            pl_module.log(f"{self.name}/train_acc", self._train.compute(), on_step=True, on_epoch=False, batch_size=1)

    def _labelled(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> tuple[Tensor, Tensor]:
        datamodule: Any = getattr(trainer, "datamodule", None)
        source = self._labelled_set(trainer)
        if source is None or source is getattr(datamodule, "train_set", None):
            return batch["image"], batch["label"]
        key = step_key(resolve_seed(self.seed), self.batches)
        rows = integers(key, "probe", len(source), (self.batch_size,))[0]
        drawn = source.__getitems__(rows[rank() :: world_size()].tolist())
        return drawn["image"].to(pl_module.device), drawn["label"].to(pl_module.device)

    def _checked(self, label: Tensor, now: bool) -> Tensor:
        """Labels (B,) as classes; what is none is told at once, or at the end of the epoch, and left out till then."""
        assert self.probe is not None
        classes = len(self.probe.bias)
        if len(label):
            self._greatest = label.amax() if self._greatest is None else torch.maximum(self._greatest, label.amax())
        if now:
            self._refuse_labels_beyond()
        return torch.where(label < classes, label, -1)

    def _refuse_labels_beyond(self) -> None:
        greatest, self._greatest = self._greatest, None
        if greatest is not None and self.probe is not None and int(greatest) >= len(self.probe.bias):
            raise ValueError(f"a label is {int(greatest)}, the probe has num_classes={len(self.probe.bias)}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._refuse_labels_beyond()
        if self.probe is not None and self._train.update_called and not bool(self._train.total > 0):
            rank_zero_warn(
                f"OnlineLinearProbe {self.name!r} met no label in this epoch, so that it has learnt nothing: a batch "
                "brings labels under 'label', int64 (B,), -1 where there is none"
            )

    # Validation

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.probe is None and self._pending is not None:
            self._build(trainer, pl_module)  # ``validate`` with a checkpoint
        if self.probe is not None:
            self.probe.to(pl_module.device)
        self._val.to(pl_module.device).reset()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.probe is None or trainer.sanity_checking or dataloader_idx:
            return
        label = self._checked(batch["label"], now=False)
        self._val.update(self.probe(represent(pl_module, batch["image"])).argmax(1), label)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.probe is None or trainer.sanity_checking:
            return
        self._refuse_labels_beyond()
        accuracy = self._val.compute()
        if not bool(accuracy.isnan()):
            pl_module.log(f"{self.name}/val_acc", accuracy, prog_bar=True, sync_dist=True)
