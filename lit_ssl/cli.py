"""The command behind ``lit-ssl``: LightningCLI, with layers found by name and callbacks that are always there."""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Union, get_args

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary, ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_ssl import configs
from lit_ssl.callbacks import (
    AugmentedViews,
    EmbeddingMap,
    ExactCheckpoint,
    HealthGuard,
    ImageTextRetrieval,
    LatentSamples,
    LatentTraversals,
    LearningRate,
    NearestNeighbours,
    OnlineKNN,
    OnlineLinearProbe,
    Preemption,
    Reconstructions,
    RepresentationMonitor,
    SaveEmbeddings,
    SummaryTable,
    Throughput,
    ZeroShot,
)
from lit_ssl.checkpoint import CheckpointError
from lit_ssl.flags import meant_flag, most_used
from lit_ssl.layers import Layer, find_own_classes, flags_of, given_of, with_checkpoint, with_classes_first
from lit_ssl.logger import MetricsLogger, RunRecord, newest_run
from lit_ssl.messages import UserError, cause_of, choice_of, is_users, line_of, quiet
from lit_ssl.model_summary import NetworkSummary
from lit_ssl.module import SSLModule
from lit_ssl.rebuild import SavedMethod

__all__ = ["CLI", "UserError", "run"]

# Always there, each configurable under its key (--probe.every_n_steps 4), if the method has what the callback needs.
CALLBACKS: dict[str, type] = {
    "health": HealthGuard,  # first: what follows a skipped step sees the weights as they were
    "probe": OnlineLinearProbe,
    "knn": OnlineKNN,
    "spectrum": RepresentationMonitor,
    "augmented_views": AugmentedViews,
    "embedding_map": EmbeddingMap,
    "nearest_neighbours": NearestNeighbours,
    "reconstructions": Reconstructions,
    "latent_traversals": LatentTraversals,
    "latent_samples": LatentSamples,
    "retrieval": ImageTextRetrieval,
    "zero_shot": ZeroShot,
    "table": SummaryTable,
    "embeddings": SaveEmbeddings,
    "learning_rate": LearningRate,
    "throughput": Throughput,
    "progress": TQDMProgressBar,
    "preemption": Preemption,
    "checkpoint": ExactCheckpoint,
}


class Parser(LightningArgumentParser):
    """Says what is wrong in one line, the cause of it and not the chain that led there."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        hint = meant_flag(message, CALLBACKS) if message.startswith("unrecognized arguments: --") else ""
        raise UserError(cause_of(message) + hint) from ex

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        text = super().format_help(*args, **kwargs)
        if "--trainer.max_epochs" not in text:  # not that of a subcommand
            return text
        return most_used() + text[text.index("\n\n") :].lstrip("\n")  # behind a usage of a hundred lines


class CLI(LightningCLI):
    """``fit | validate | test | predict`` for any method with any data module."""

    def __init__(self, args: Sequence[str]) -> None:
        every = self.subcommands()  # to build the parser of one takes a second: that of the one asked for is enough
        asked = {name: skipped for name, skipped in every.items() if name == args[0]} if args else {}
        self.subcommands = lambda: asked or every  # type: ignore[method-assign]
        super().__init__(
            SSLModule,
            LightningDataModule,
            save_config_callback=RunRecord,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"log_every_n_steps": 10},
            seed_everything_default=0,
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=list(args),
            auto_configure_optimizers=False,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = self.parser_class(allow_abbrev=False, **kwargs)  # else --trainer.max_epoch passes for max_epochs
        parser.add_argument("-c", "--config", action=Layer, metavar="LAYER", help="a file or a shipped layer's name")
        return parser

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        actions: list[Any] = parser._actions
        for action in actions:  # typing may hold these with float first: 1 batch would become 1.0, all of them
            members = get_args(getattr(action, "_typehint", None))
            if {int, float} <= set(members):
                rest = [member for member in members if member not in (int, float)]
                action._typehint = Union[(int, float, *rest)]
        parser.set_defaults({f"trainer.{key}": value for key, value in self.trainer_defaults.items()})
        # Not required here: what is missing is told in _require, by the names of what there is.
        parser.add_lightning_class_args(SSLModule, "model", subclass_mode=True, required=False)
        parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for key, callback in CALLBACKS.items():
            parser.add_lightning_class_args(callback, key)
        parser.add_argument(
            "--resume.allow",
            type=str | list[str],
            default=[],
            metavar="KEY[,KEY]",
            help="what may differ from the run of the checkpoint, such as batch_size",
        )
        parser.link_arguments("resume.allow", "checkpoint.allow")
        parser.set_defaults({"progress.refresh_rate": 10})  # a refresh reads the loss, which waits for the device

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        find_own_classes(args)
        args, self._saved = with_checkpoint(args)
        self._given = {key: given_of(args, key) for key in ("model", "data")}
        self._flags = flags_of(args, "model")
        self.config = parser.parse_args(with_classes_first(args))
        self._require("model", "method")
        self._require("data", "data")
        config = self.config[self.config.subcommand]
        if self._saved is not None:
            self._check_saved(self._saved, config.model)
        start = config.model.get("init_args") or {}
        if self.config.subcommand != "fit" and not any(
            (config.ckpt_path, start.get("pretrained"), start.get("init_from"))
        ):
            raise UserError(
                f"{self.config.subcommand} needs trained weights: --ckpt_path FILE, or --model.init_from FILE"
            )
        if self.config.subcommand != "fit" and config.ckpt_path in ("last", "best"):
            raise UserError(f"--ckpt_path {config.ckpt_path} is for fit; give {self.config.subcommand} a file")
        if config.trainer.default_root_dir is not None and "://" not in str(config.trainer.default_root_dir):
            config.trainer.default_root_dir = os.path.expanduser(config.trainer.default_root_dir)
        for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
            value = config.trainer[name]
            if value is not None and value < 1:
                raise UserError(f"--trainer.{name} must be an integer of at least 1, got {value}")
        if self.config.subcommand == "fit" and config.trainer.limit_train_batches == 0:
            raise UserError("--trainer.limit_train_batches 0 leaves nothing to train on; give more than 0")
        devices, cores = str(config.trainer.devices), os.cpu_count() or 1
        if config.trainer.accelerator == "cpu" and devices.isdecimal() and int(devices) > 4 * cores:
            raise UserError(f"--trainer.devices {devices}: that many processes would choke the {cores} cores there are")

    def _require(self, key: str, folder: str) -> None:
        if self.config[self.config.subcommand].get(key) is None:
            shipped = [name for name in configs.names() if name.startswith(f"{folder}/")]
            raise UserError(f"no {key}: give --config with one of {', '.join(shipped)}, or --{key}; {choice_of(key)}")

    def _check_saved(self, saved: SavedMethod, model: Any) -> None:
        named = model.class_path.rpartition(".")[2]
        if saved.name and named != saved.name:
            raise UserError(f"--ckpt_path: {saved.source} holds a {saved.name}, the configuration says {named}")
        try:
            replace(saved, given={k: v for k, v in saved.given.items() if k not in self._given["model"]}).check_given()
        except CheckpointError as error:
            raise UserError(f"--ckpt_path: {error}") from error

    def _parse_ckpt_path(self) -> None:
        """Done already, see :meth:`_instantiate_model`."""

    def _add_instantiators(self) -> None:
        """A class gets what was given and nothing else, so that it is what it would be in Python."""
        self.parser.add_instantiator(self._instantiate_model, SSLModule, subclasses=True)
        self.parser.add_instantiator(self._instantiate_data, LightningDataModule, subclasses=True)

    def _instantiate_model(self, kind: type, *args: Any, **kwargs: Any) -> Any:
        """With the arguments of a checkpoint under those of flags: plain values, of which the parser knows nothing."""
        arguments = _only_given(kind, kwargs, self._given["model"])
        if self._saved is None:
            return kind(*args, **arguments)
        saved = {name: value for name, value in self._saved.arguments.items() if name not in self._flags}
        arguments = {**arguments, "pretrained": False, "init_from": None, "spec": self._saved.spec, **saved}
        try:
            return kind(*args, **{k: v for k, v in arguments.items() if v is not None or k in saved})
        except Exception as error:  # what a constructor raises on values that anybody may have written
            raise UserError(f"--ckpt_path: {self._saved.source} cannot be rebuilt: {line_of(error)}") from error

    def _instantiate_data(self, kind: type, *args: Any, **kwargs: Any) -> Any:
        return kind(*args, **_only_given(kind, kwargs, self._given["data"]))

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise UserError(f"seed_everything: {error}") from error

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, OSError, ImportError, MisconfigurationException) as error:
            raise UserError(line_of(error)) from error
        self._record_model()

    def _record_model(self) -> None:
        """Let the recorded configuration say what the method has become: by a checkpoint, or by defaults of its own."""
        recorded = self.config[self.subcommand].model.init_args
        saved = set(self._saved.arguments) - self._flags if self._saved is not None else set()
        for name, value in self.model.hparams.items():
            if name in recorded and (name in saved or name not in self._given["model"]) and value is not None:
                recorded[name] = value

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add what every run has: metrics on disk, and the callbacks that the trainer's own switches leave on."""
        config = self._get(self.config_init, "trainer")
        loggers = config.get("logger")
        if loggers is not False:
            given = [] if loggers in (None, True) else list(loggers) if isinstance(loggers, list) else [loggers]
            if not any(isinstance(logger, CSVLogger) for logger in given):
                given.insert(0, self._metrics_logger(config.get("default_root_dir")))
            kwargs["logger"] = given
        unsaved = config.get("enable_checkpointing") is False or self.subcommand != "fit"
        off: dict[str, bool] = {
            "checkpoint": unsaved,
            "preemption": unsaved,
            "progress": config.get("enable_progress_bar") is False,
        }
        own = [config["callbacks"]] if not isinstance(config.get("callbacks"), list) else config["callbacks"]
        for other in own:
            if isinstance(other, ModelCheckpoint) and not isinstance(other, ExactCheckpoint):
                # What it saves is from any instant: ``--ckpt_path last`` goes on from what ExactCheckpoint saved.
                other._find_last_checkpoints = lambda trainer: set()  # type: ignore[method-assign]
            _refuse_second(other)
        off["progress"] |= any(isinstance(callback, ProgressBar) for callback in own)
        if config.get("enable_model_summary") is not False and not any(isinstance(c, ModelSummary) for c in own):
            kwargs["callbacks"] = [*(callback for callback in own if callback is not None), NetworkSummary()]
        keys = [key for key in self._parser(self.subcommand).callback_keys if not off.get(key)]
        callbacks = [self._get(self.config_init, key) for key in keys]
        callbacks = [callback for callback in callbacks if hasattr(self.model, getattr(callback, "needs", "loss"))]
        return self._instantiate_trainer({**config, **kwargs}, callbacks)

    def _metrics_logger(self, root: str | None) -> CSVLogger:
        """The folder of this run: a new one, or with ``--ckpt_path last`` that of the run to go on with."""
        config = self.config[self.subcommand]
        model, data = (config[key].class_path.rpartition(".")[2].lower() for key in ("model", "data"))
        root, name = root or "runs", f"{model}-{data}"
        last = config.ckpt_path == "last"
        version = newest_run(Path(root) / name, config.checkpoint.dirpath) if last else None
        return MetricsLogger(root, name, version)

    def after_fit(self) -> None:
        folder = self.trainer.log_dir  # a collective call: every rank makes it, once
        if folder and self.trainer.is_global_zero:
            print(f"files of this run: {folder}")

    after_validate = after_test = after_predict = after_fit


def _refuse_second(callback: Any) -> None:
    """Say it where ``trainer.callbacks`` holds one that the command brings: both would write under the same names."""
    for key, kind in CALLBACKS.items():
        if type(callback) is kind and kind is not TQDMProgressBar and getattr(callback, "name", key) == key:
            raise UserError(
                f"trainer.callbacks holds a {kind.__name__}; the command brings one: set that by --{key}.… in place "
                "of a second one"
            )


def _only_given(kind: type, arguments: dict[str, Any], given: Collection[str]) -> dict[str, Any]:
    """The arguments without the defaults that the parser found in the signatures of a class's bases: the class may have
    others, as ``kwargs.setdefault`` gives."""
    own = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    inherited = any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values())
    if not inherited:
        return arguments
    return {name: value for name, value in arguments.items() if name in given or name in own}


def run(args: Sequence[str]) -> None:
    """Parse the arguments, build everything and run the subcommand.

    Raises:
        UserError: a mistake in the arguments, the configuration or the data. Any other exception is a failure of the
            program.
    """
    with quiet():
        try:
            CLI(args)
        except UserError:
            raise
        except Exception as error:
            if is_users(error):
                raise UserError(line_of(error)) from error
            raise
