"""SSLModule: what all methods share, from networks built for a spec to embeddings, logging and the optimizer."""

from __future__ import annotations

import copy
import inspect
import math
import os
import secrets
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    GradientAccumulationScheduler,
    ModelPruning,
    StochasticWeightAveraging,
)
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lit_ssl.checkpoint import load
from lit_ssl.checks import check_choice, check_flag, check_number, check_options, check_positive
from lit_ssl.distributed import all_reduce_sum, rank, world_size
from lit_ssl.fingerprint import compare, fingerprint, warn_of_lost_states
from lit_ssl.hyperparameters import NotesArguments, split_plain, views_from
from lit_ssl.networks import build_backbone, is_vit, load_backbone, synchronize_batchnorm
from lit_ssl.optim import SCHEDULES, build_optimizer, scaled_lr, warmup_cosine
from lit_ssl.progress import run_length, steps_ahead
from lit_ssl.random import isolated, resolve_seed
from lit_ssl.rebuild import saved_method
from lit_ssl.sharding import shard
from lit_ssl.spec import ImageSpec
from lit_ssl.training_mode import parts_in_evaluation_mode
from lit_ssl.views import Batch, View, as_batch, clean, with_keys, with_views

__all__ = ["SSLModule"]

Losses = dict[str, Tensor]

EARLY = (BaseFinetuning, ModelPruning, StochasticWeightAveraging)
"""Callbacks of Lightning that look for networks before :meth:`SSLModule.configure_model`."""

# Both the data module and the method can make views; Lightning asks the data module, which is what is meant.
warnings.filterwarnings("ignore", message=r"You have overridden `(on_|transfer_)\w*batch\w*` in both")


class SSLModule(NotesArguments, LightningModule):
    """Base class of every method.

    A method adds its heads in :meth:`build_heads` and says what it minimises in :meth:`loss`. Everything else (views
    made on the device, logging, clean embeddings for probes, optimizer and schedule) is here.

    Args:
        backbone: a timm model name, ``"convnet"`` (small, for 28 to 64 px), ``"mlp"`` (flattened pixels), or any
            ``nn.Module`` that maps (B, C, H, W) to (B, D). The default is the field's usual one for small images.
        pretrained: start from timm's published weights.
        backbone_options: passed to the backbone's constructor.
        init_from: path of a checkpoint (of this package, a plain state dict, or safetensors) the backbone starts from.
        spec: size, channels and statistics of the images, or a dict of these; by default taken from the data module.
        views: the views to learn from, in place of the method's own.
        seed: of weights and of draws that belong to a step; None takes ``seed_everything``'s, else 0.
        optimizer: ``adamw``, ``sgd``, ``lars`` or any other name in ``timm.optim``.
        lr: learning rate for a global batch of 256 images, positive; see ``lr_scaling``.
        weight_decay: at least 0; never applied to biases, norms, positions, tokens or the logit scale.
        optimizer_options: further arguments of the optimizer (``momentum``, ``betas``, ...).
        lr_scaling: how ``lr`` grows with (global batch incl. accumulation) / 256: ``linear`` (Goyal et al. 2017,
            arXiv:1706.02677), ``sqrt`` (Krizhevsky 2014, arXiv:1404.5997) or ``none``.
        schedule: ``cosine`` to zero (Loshchilov & Hutter 2017, arXiv:1608.03983) or ``constant``, per optimizer step.
        warmup_epochs: of linear warm-up, at most a fifth of the run; may be fractional.
        final_lr: where the cosine ends, on the scale of ``lr``, from 0 to ``lr``; default 0.
        compile: run the backbone through ``torch.compile``.
        gradient_checkpointing: recompute the backbone's activations in the backward pass (timm models).
        channels_last: keep weights and images in that memory format.

    Raises:
        ValueError: an argument outside its range; the message names argument, value and what is allowed.
    """

    view_count: int | range = 2  # how many views an image the loss takes

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        backbone: str | nn.Module = "resnet18",
        pretrained: bool = False,
        backbone_options: dict[str, Any] | None = None,
        init_from: str | None = None,
        spec: ImageSpec | dict[str, Any] | None = None,
        views: View | None = None,
        seed: int | None = None,
        optimizer: str = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        optimizer_options: dict[str, Any] | None = None,
        lr_scaling: Literal["linear", "sqrt", "none"] = "linear",
        schedule: Literal["cosine", "constant"] = "cosine",
        warmup_epochs: float = 10,
        final_lr: float = 0.0,
        compile: bool = False,
        gradient_checkpointing: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self._save_arguments()
        if not isinstance(backbone, str | nn.Module):
            raise TypeError(f"backbone must be a name or an nn.Module, got {type(backbone).__name__}: {backbone!r}")
        if views is not None and not isinstance(views, Mapping) and not callable(views):
            raise TypeError(f"views must be callable, as those of lit_ssl.views are, got {views!r}")
        for name, switch in (
            ("pretrained", pretrained),
            ("compile", compile),
            ("gradient_checkpointing", gradient_checkpointing),
            ("channels_last", channels_last),
        ):
            check_flag(name, switch)
        check_options("backbone_options", backbone_options)
        check_options("optimizer_options", optimizer_options)
        check_positive("warmup_epochs", warmup_epochs, zero=True)
        if init_from is not None and not isinstance(init_from, str | os.PathLike):
            raise TypeError(f"init_from must be the path of a file, got {init_from!r}")
        if pretrained and init_from is not None:
            raise ValueError(f"init_from ({init_from!r}) and pretrained=True both set the first weights; give one")
        if seed is not None:
            resolve_seed(seed)
        self.spec = None if spec is None else ImageSpec.of(spec)
        self.views = views_from(views)
        self.seed = seed
        self.optimizer_arguments: dict[str, Any] = {
            "name": optimizer,
            "lr": lr,
            "weight_decay": weight_decay,
            "options": optimizer_options,
        }
        build_optimizer([("weight", nn.Parameter(torch.zeros(1, 1)))], **self.optimizer_arguments)  # rejects bad ones
        scaled_lr(lr, 256, lr_scaling)
        check_choice("schedule", schedule, SCHEDULES)
        check_number("final_lr", final_lr, 0.0, lr)
        self.lr_scaling, self.schedule, self.warmup_epochs = lr_scaling, schedule, warmup_epochs
        self.final_lr = final_lr
        self._architecture = (backbone,)  # in a tuple, so that a given module is registered once, as ``backbone``
        self._backbone_arguments: dict[str, Any] = {
            "pretrained": pretrained,
            "gradient_checkpointing": gradient_checkpointing,
            "options": backbone_options,
        }
        self._init_from, self._compile, self._channels_last = init_from, compile, channels_last
        self._made_of: dict[str, Any] = {}  # see lit_ssl.fingerprint
        self._maker = secrets.token_hex(8)  # tells this very object's checkpoints from those of other runs
        self._changes: list[dict[str, Any]] = []
        self._planned: tuple[float, dict[str, Any]] | None = None  # what configure_optimizers took
        self._ahead = 0.0  # see lit_ssl.progress

    def _save_arguments(self) -> None:
        """Everything that is a plain value goes to the hyper-parameters; of modules and callables, what they are."""
        modules = [name for name, value in self._given.items() if isinstance(value, nn.Module)]
        self.save_hyperparameters(ignore=modules)
        for name in ("_instantiator", "_class_path"):  # of a LightningCLI, for its own way of loading
            self.hparams.pop(name, None)
        plain, others = split_plain({**self.hparams, **{name: self._given[name] for name in modules}})
        for name in others:
            self.hparams.pop(name, None)
        self.save_hyperparameters(plain)
        self._not_plain = others

    # Networks

    def configure_model(self) -> None:
        """Build the networks for the spec, from the module's own seed; a second call does nothing."""
        if not hasattr(self, "backbone"):
            self._build_networks()
        if self.device_mesh is not None:  # of Lightning's ModelParallelStrategy
            shard(self, self.device_mesh)

    def _build_networks(self) -> None:
        self.spec = self.spec or getattr(getattr(self._trainer, "datamodule", None), "spec", None)
        spec = self._needed_spec()
        for name, value in (("pixel_mean", spec.mean), ("pixel_std", spec.std)):
            self.register_buffer(name, torch.tensor(value).view(-1, 1, 1), persistent=False)
        # On the host, whatever the trainer's device: its generators would give every kind of device its own weights.
        with isolated(resolve_seed(self.seed), "weights"), torch.device("cpu"):
            self.backbone = build_backbone(self._architecture[0], spec, **self._backbone_arguments)
            if self._init_from is not None:
                load_backbone(self.backbone, self._init_from)
            self.build_heads()
        synchronize_batchnorm(self)
        if self._channels_last and self.device_mesh is not None:
            rank_zero_info("channels_last is left out: weights that are sharded (trainer/fsdp) lie contiguous")
            self._channels_last = False
        if self._channels_last:
            self.to(memory_format=torch.channels_last)
        if self._compile:
            # A masked forward pass goes through a ViT's blocks, not through its forward.
            for block in cast(nn.Module, self.backbone.blocks).children() if is_vit(self.backbone) else [self.backbone]:
                block.compile()

    def _needed_spec(self) -> ImageSpec:
        if self.spec is None:
            name = type(self).__name__
            raise ValueError(f"spec is needed where no data module gives one: {name}(spec=ImageSpec(32, channels=3))")
        return self.spec

    def build_heads(self) -> None:
        """Add what the method trains beside the backbone; called once, with ``backbone`` and ``spec`` in place."""
        raise NotImplementedError(f"{type(self).__name__} must define build_heads")

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if name.startswith("_") or "backbone" in self.__dict__.get("_modules", {}):
                raise
            raise AttributeError(
                f"{error}; networks are built for the data when a Trainer begins, or before that by configure_model(), "
                f"which needs the spec: {type(self).__name__}(spec=...)"
            ) from None

    @property
    def num_features(self) -> int:
        """Length of an embedding."""
        return self.backbone.num_features  # type: ignore[return-value]

    @property
    def from_scratch(self) -> bool:
        """Whether the backbone was built by name, with random weights."""
        given = isinstance(self._architecture[0], nn.Module)
        return not (given or self._backbone_arguments["pretrained"] or self._init_from is not None)

    def normalize(self, x: Tensor) -> Tensor:
        """Plain pixels in [0, 1] to the statistics of the spec, in the memory format of the weights."""
        x = (x - self.pixel_mean) / self.pixel_std
        return x.contiguous(memory_format=torch.channels_last) if self._channels_last else x

    # Representations

    def embed(self, x: Tensor) -> Tensor:
        """Clean, unmasked images (B, C, H, W) in [0, 1] to representations (B, D)."""
        return self.backbone(self.normalize(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, evaluation mode without gradients; outside, every training flag as it was."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for module, training in modes:
                module.training = training

    def clean(self, image: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) to their evaluation view, (B, C, h, w) in [0, 1], on the module's device."""
        return clean(image.to(self.device), self._needed_spec(), cast(torch.dtype, self.dtype))

    def represent(self, image: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) to float32 representations (B, D) of their clean view, in evaluation mode."""
        with self.evaluating():
            return self.embed(self.clean(image)).float()

    def untrained(self) -> SSLModule:
        """A twin with its first weights: from the same seed, never pretrained; a given module has its own reset."""
        memo: dict[int, Any] = {}  # a module that is given twice stays one
        given: dict[str, Any] = {
            name: copy.deepcopy(value, memo) if isinstance(value, nn.Module) else value
            for name, value in self._given.items()
        }
        twin = type(self)(**given)
        twin.spec, twin._init_from, twin._compile = self.spec, None, False
        twin._backbone_arguments["pretrained"] = False
        twin.configure_model()
        if isinstance(self._architecture[0], nn.Module):
            with isolated(resolve_seed(self.seed), "weights"):
                for module in twin.backbone.modules():
                    if callable(reset := getattr(module, "reset_parameters", None)):
                        reset()
        return twin.to(self.device, self.dtype).eval()

    # Training

    def loss(self, batch: Batch) -> Losses:
        """What the method minimises: a dict of scalars, the total under ``loss``. Views are in ``batch["views"]``."""
        raise NotImplementedError(f"{type(self).__name__} must define loss")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if not self.training:  # BatchNorm would take its running statistics, and the method learn next to nothing
            rank_zero_warn("the method was in evaluation mode in the middle of training: it is in training mode again")
            self.train()
        if batch_idx == 0 and (parts := parts_in_evaluation_mode(self)):
            rank_zero_warn(
                f"in evaluation mode while they are trained: {', '.join(parts)}. Their BatchNorm and dropout act as in "
                "use; call train() on them, or leave it so if it is meant"
            )
        return self._log_losses("train", batch)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._log_losses("val", batch)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._log_losses("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Embeddings (B, D) with the index and label (B,) of each image."""
        return {"embedding": self.represent(batch["image"]), "index": batch["index"], "label": batch["label"]}

    def _log_losses(self, stage: str, batch: Batch) -> Tensor:
        allowed = self.view_count if isinstance(self.view_count, range) else range(self.view_count, self.view_count + 1)
        if len(batch["views"]) not in allowed:
            name, made = type(self).__name__, len(batch["views"])
            count = f"{allowed[0]} to {allowed[-1]}" if len(allowed) > 1 else f"{allowed[0]}"
            raise ValueError(f"views of {name} must make {count} views an image, got {made} from {self.views}")
        losses = self.loss(batch)
        # Each rank holds its share of the global mean: one small all-reduce gives every rank, and the log, the whole.
        values = all_reduce_sum(torch.stack([value.detach() for value in losses.values()])) / world_size()
        self.log_dict(
            {f"{stage}/{name}": value for name, value in zip(losses, values.unbind(), strict=True)},
            batch_size=len(batch["image"]),
            on_step=stage == "train",
            on_epoch=stage != "train",
            prog_bar=stage == "train",
            sync_dist=stage != "train",
        )
        return losses["loss"]

    def configure_callbacks(self) -> list[Callback]:
        """No callbacks of its own; but networks are built now where one copies or counts them in its ``setup``."""
        callbacks = cast(Any, self.trainer).callbacks
        if any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks):
            raise ValueError(
                "GradientAccumulationScheduler would change the global batch, and with it the rate and its course, in "
                "the middle of the run: give the Trainer accumulate_grad_batches, one integer for the whole run"
            )
        if any(isinstance(callback, EARLY) for callback in callbacks):
            with self.trainer.precision_plugin.module_init_context(), self.trainer.strategy.tensor_init_context():
                self.configure_model()
        return []

    def _take_found_rate(self) -> bool:
        """Whether a finder has set ``hparams.lr`` since construction: it is then the rate itself, and so recorded."""
        if self.hparams.get("lr", self.optimizer_arguments["lr"]) == self.optimizer_arguments["lr"]:
            return False
        rate = float(self.hparams["lr"])
        self.optimizer_arguments["lr"], self.lr_scaling = rate, "none"
        self.hparams["lr_scaling"] = "none"
        for logger in self.trainer.loggers:  # they took the arguments before the finder began
            logger.log_hyperparams({"lr": rate, "lr_scaling": "none"})
        rank_zero_info(f"the learning rate is {rate:.3g}, as it was found, whatever the batch")
        return True

    def configure_optimizers(self) -> Any:
        self._take_found_rate()
        self.trainer.fit_loop.setup_data()  # what follows asks for the loader's length and batch size
        self._planned = self._plan()
        peak, course = self._planned
        optimizer = build_optimizer(self, **{**self.optimizer_arguments, "lr": peak})
        scheduler = warmup_cosine(optimizer, **course)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"}}

    def _plan(self) -> tuple[float, dict[str, Any]]:
        """The peak of the learning rate, and the arguments of its course, for the loader and trainer as they are."""
        total = self.steps_planned
        if total == 0:
            raise ValueError(
                "the training loader has no batch: no images, fewer than a batch with drop_last=True, or a limit of 0 "
                "(limit_train_batches, max_steps)"
            )
        peak = self.optimizer_arguments["lr"]
        if self.lr_scaling != "none":
            peak = scaled_lr(peak, self._global_batch(), self.lr_scaling)
        steps_per_epoch = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        warmup = self.warmup_epochs * math.ceil(steps_per_epoch) if math.isfinite(steps_per_epoch) else 0
        steps = int(min(warmup, total / 5))
        if steps < int(warmup) and self._planned is None:
            rank_zero_info(
                f"warm-up takes {steps:,} of {int(total):,} steps, a fifth of this short run, in place of the "
                f"{int(warmup):,} of warmup_epochs={self.warmup_epochs:g}"
            )
        return peak, {
            "warmup_steps": steps,
            "total_steps": math.ceil(total) if math.isfinite(total) else None,
            "schedule": self.schedule,
            "final": self.final_lr / float(self.hparams.get("lr", 0.0) or 1.0),
            "ahead": self._ahead,
        }

    @property
    def steps_seen(self) -> float:
        """Optimizer steps of the run so far, as if all had been made with the batch of now."""
        return self.global_step + self._ahead

    @property
    def steps_planned(self) -> float:
        """Those of the whole run, counted alike; infinite where it has no end. Needs a trainer."""
        return run_length(self.trainer, self._ahead)

    def _global_batch(self) -> int:
        size = getattr(self.trainer.train_dataloader, "batch_size", None)
        if size is None:
            raise ValueError("lr_scaling needs the batch size: give a DataLoader with batch_size, or lr_scaling='none'")
        return size * self.trainer.world_size * self.trainer.accumulate_grad_batches

    # A plain DataLoader of uint8 images; a data module of this package has these hooks itself.

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        trainer = self.trainer
        epoch = trainer.current_epoch if trainer.training else -1
        salt = (trainer.global_step if trainer.training else 0, rank())
        return with_keys(as_batch(batch), resolve_seed(self.seed), epoch, salt=salt)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        key = batch.pop("key")  # stays on the host, where views draw their parameters without a device sync
        return {**super().transfer_batch_to_device(batch, device, dataloader_idx), "key": key}

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        if self.trainer.predicting or self.spec is None:
            return batch
        return with_views(batch, self.views, self.spec, cast(torch.dtype, self.dtype))

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """The method of a checkpoint, with its weights, in evaluation mode. Never runs or imports what the file names.

        ``SSLModule.load_from_checkpoint`` finds the class among those of this package; a method of your own is loaded
        by its own class. What was given as a module has to be given again, ``backbone=...``.

        Args:
            checkpoint_path: a file, whose checksum is compared; or a URL.
            map_location: the device, by default the host.
            hparams_file: not supported: a checkpoint holds its arguments.
            strict: whether all weights have to be there and to fit; default as ``strict_loading`` has it, True.
            weights_only: always True.
            **kwargs: arguments of the method, in place of the file's.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: it is damaged, holds another method, or cannot be rebuilt; the message says why.
            ValueError: an argument that is not supported.
        """
        for name, value in (("hparams_file", hparams_file), ("weights_only", weights_only)):
            if value not in (None, name == "weights_only"):
                raise ValueError(f"{name} must be left out, got {value!r}: a file is never trusted to run code")
        content = load(checkpoint_path, map_location or "cpu")
        method = saved_method(content, str(checkpoint_path), kwargs).build(cls, **kwargs)
        method.on_load_checkpoint(content)
        method.load_state_dict(content["state_dict"], strict=method.strict_loading if strict is None else strict)
        return method.to(map_location or "cpu").eval()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A run that goes on has to be the one that saved the checkpoint: what else decides its numbers is refused."""
        if self._trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        if checkpoint.get("maker") == self._maker:  # a finder of rates or batches goes back to where it began
            return
        warn_of_lost_states(self.trainer, checkpoint)
        self._made_of = fingerprint(self.trainer, self)
        self._changes = [*checkpoint.get("changes", []), *compare(self.trainer, self._made_of, checkpoint)]
        self._ahead = steps_ahead(checkpoint.get("fingerprint"), self._made_of, checkpoint)
        for scheduler in checkpoint.get("lr_schedulers", []):
            scheduler.pop("base_lrs", None)  # the peak is this run's, which a batch that was let differ changes

    def on_train_start(self) -> None:
        """The rate is that of this run as it begins: a checkpoint, or a finder, may have left another."""
        if not self.training:
            self.train()  # what was loaded from a checkpoint is in evaluation mode
        found = self._take_found_rate()
        plan = self._plan() if found or self._planned is not None else None
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(scheduler := config.scheduler, LambdaLR):
                if plan is not None and plan != self._planned:
                    anew = warmup_cosine(torch.optim.SGD([nn.Parameter(torch.zeros(()))], plan[0]), **plan[1])
                    count = len(scheduler.base_lrs)
                    scheduler.base_lrs, scheduler.lr_lambdas = anew.base_lrs * count, anew.lr_lambdas * count
                rates = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
                for group, (peak, factor) in zip(scheduler.optimizer.param_groups, rates, strict=True):
                    group["lr"] = peak * factor(scheduler.last_epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what loading needs: without the data, without other files, and without knowing the class."""
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._made_of = self._made_of or fingerprint(self.trainer, self)
            checkpoint |= {"fingerprint": self._made_of, "changes": self._changes, "maker": self._maker}
            checkpoint["ahead"] = self._ahead
        checkpoint["class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint["given"] = dict(self._not_plain)
        arguments = dict(checkpoint.get("hyper_parameters") or self.hparams)
        if not type(self).__init__.__module__.startswith("lit_ssl."):  # it may give some of the base's by itself
            own = {*self._given, *inspect.signature(type(self).__init__).parameters}
            arguments = {name: value for name, value in arguments.items() if name in own}
        if self.spec is not None:
            first_weights = {"pretrained": False, "init_from": None}  # superseded by those in the checkpoint
            arguments |= {"spec": self.spec.to_dict(), **first_weights}
        checkpoint["hyper_parameters"] = arguments
