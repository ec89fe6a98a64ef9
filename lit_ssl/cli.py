"""The command behind ``lit-ssl``: LightningCLI, with layers found by name and callbacks that are always there."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch
import yaml
from jsonargparse import ActionConfigFile
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_ssl import configs
from lit_ssl.callbacks import (
    AugmentedViews,
    EmbeddingMap,
    ImageTextRetrieval,
    LatentSamples,
    LatentTraversals,
    LearningRate,
    NearestNeighbours,
    OnlineKNN,
    OnlineLinearProbe,
    Reconstructions,
    RepresentationMonitor,
    SaveEmbeddings,
    SummaryTable,
    Throughput,
    ZeroShot,
)
from lit_ssl.logger import RunRecord
from lit_ssl.messages import UserError, cause_of, choice_of, is_users, line_of, quiet
from lit_ssl.module import SSLModule

__all__ = ["CLI", "UserError", "run"]

# Always there, each configurable under its key (--probe.every_n_steps 4), if the method has what the callback needs.
CALLBACKS: dict[str, type] = {
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
    "checkpoint": ModelCheckpoint,
}


class CheckpointLayer(str):
    """A layer that a checkpoint's hyper-parameters make: a configuration string that says where it came from."""

    path: str
    model: dict[str, Any]


class Layer(ActionConfigFile):
    """``--config``: a file, the name of a shipped layer, or a configuration string."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        if isinstance(values, CheckpointLayer):
            _check_same_class(values, cfg.get("model"))
            values = str(values)
        elif not values.lstrip().startswith("{"):
            try:
                values = str(configs.find(values))
            except FileNotFoundError as error:
                raise UserError(str(error)) from None
        super().__call__(parser, cfg, values, option_string)


class Parser(LightningArgumentParser):
    """Says what is wrong in one line, the cause of it and not the chain that led there."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        raise UserError(cause_of(message)) from ex


class CLI(LightningCLI):
    """``fit | validate | test | predict`` for any method with any data module."""

    def __init__(self, args: Sequence[str]) -> None:
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
            if {int, float} <= set(get_args(getattr(action, "_typehint", None))):
                action._typehint = int | float | None
        parser.set_defaults({f"trainer.{key}": value for key, value in self.trainer_defaults.items()})
        # Not required here: what is missing is told in _require, by the names of what there is.
        parser.add_lightning_class_args(SSLModule, "model", subclass_mode=True, required=False)
        parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for key, callback in CALLBACKS.items():
            parser.add_lightning_class_args(callback, key)
        parser.set_defaults({"progress.refresh_rate": 10})  # a refresh reads the loss, which waits for the device

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(_with_classes_first(_with_checkpoint(args)))
        self._require("model", "method")
        self._require("data", "data")
        config = self.config[self.config.subcommand]
        start = config.model.get("init_args") or {}
        if self.config.subcommand != "fit" and not any(
            (config.ckpt_path, start.get("pretrained"), start.get("init_from"))
        ):
            raise UserError(
                f"{self.config.subcommand} needs trained weights: --ckpt_path FILE, or --model.init_from FILE"
            )

    def _require(self, key: str, folder: str) -> None:
        if self.config[self.config.subcommand].get(key) is None:
            shipped = [name for name in configs.names() if name.startswith(f"{folder}/")]
            raise UserError(f"no {key}: give --config with one of {', '.join(shipped)}, or --{key}; {choice_of(key)}")

    def _parse_ckpt_path(self) -> None:
        """Done already: a checkpoint's hyper-parameters are a layer, see :func:`_with_checkpoint`."""

    def before_instantiate_classes(self) -> None:
        checkpoint = self.config[self.subcommand].checkpoint
        if checkpoint.filename is None and checkpoint.monitor is None and checkpoint.save_top_k == 1:
            checkpoint.filename = "last"  # one file, renewed at each epoch's end
            checkpoint.enable_version_counter = False
        elif checkpoint.save_last is None:
            checkpoint.save_last = True

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

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add what every run has: metrics on disk, and the callbacks that the trainer's own switches leave on."""
        config = self._get(self.config_init, "trainer")
        loggers = config.get("logger")
        if loggers is not False:
            given = [] if loggers in (None, True) else list(loggers) if isinstance(loggers, list) else [loggers]
            if not any(isinstance(logger, CSVLogger) for logger in given):
                given.insert(0, self._metrics_logger(config.get("default_root_dir")))
            kwargs["logger"] = given
        off = {
            "checkpoint": config.get("enable_checkpointing") is False or self.subcommand != "fit",
            "progress": config.get("enable_progress_bar") is False,
        }
        keys = [key for key in self._parser(self.subcommand).callback_keys if not off.get(key)]
        callbacks = [self._get(self.config_init, key) for key in keys]
        callbacks = [callback for callback in callbacks if hasattr(self.model, getattr(callback, "needs", "loss"))]
        return self._instantiate_trainer({**config, **kwargs}, callbacks)

    def _metrics_logger(self, root: str | None) -> CSVLogger:
        config = self.config[self.subcommand]
        model, data = (config[key].class_path.rpartition(".")[2].lower() for key in ("model", "data"))
        # Written at each logging interval, which costs a line; Lightning's 100 would lose most of a killed run.
        return CSVLogger(root or "runs", name=f"{model}-{data}", flush_logs_every_n_steps=1)

    def after_fit(self) -> None:
        folder = self.trainer.log_dir  # a collective call: every rank makes it, once
        if folder and self.trainer.is_global_zero:
            print(f"files of this run: {folder}")

    after_validate = after_test = after_predict = after_fit


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


def _options(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Flags with their values, whether joined by ``=`` or not."""
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        flag, joined, value = arg.partition("=")
        if flag.startswith("-"):
            yield flag, value if joined else following


def _with_classes_first(args: Sequence[str]) -> list[str]:
    """The arguments with the classes of model and data in front, so that a layer of arguments may come before them."""
    classes: dict[str, Any] = {}
    for flag, value in _options(args):
        given: Any = {}
        if flag in ("--config", "-c"):
            with suppress(OSError, yaml.YAMLError):  # told when the layer's turn comes
                given = yaml.safe_load(
                    str(value) if value.lstrip().startswith("{") else configs.find(value).read_text()
                )
        elif flag in ("--model", "--data"):
            given = {flag[2:]: {"class_path": value}}
        for key in ("model", "data"):
            section = given.get(key) if isinstance(given, dict) else None
            if isinstance(section, dict) and isinstance(section.get("class_path"), str):
                classes.setdefault(key, {"class_path": section["class_path"]})
    return [*args[:1], "--config", json.dumps(classes), *args[1:]] if classes else list(args)


# A checkpoint's model


def _with_checkpoint(args: Sequence[str]) -> list[str]:
    """The arguments with the model of ``--ckpt_path FILE`` as a layer: over the others, under ``--model.…`` flags.

    Weights fit the model they were saved from: it need not be given again, and what a layer says of it gives way.
    A flag is deliberate and stays.
    """
    rest: list[str] = []
    flags: list[str] = []
    path, pending = None, iter(args)
    for arg in pending:
        flag, joined, value = arg.partition("=")
        if flag == "--ckpt_path":  # also last, so that the ``ckpt_path: null`` of a saved config.yaml does not undo it
            path = value if joined else next(pending, "")
        elif flag.startswith("--model.") and flag != "--model.help":
            flags += [arg] if joined else [arg, next(pending, "")]
        else:
            rest.append(arg)
    if path is None:
        return list(args)
    if path in ("null", "last", "best", "hpc") or "://" in path or (layer := _checkpoint_layer(path)) is None:
        return [*args, f"--ckpt_path={path}"]
    return [*rest, "--config", layer, *flags, f"--ckpt_path={path}"]


def _checkpoint_layer(path: str) -> CheckpointLayer | None:
    if not Path(path).is_file():
        raise UserError(f"--ckpt_path: no file {path!r}")
    if not zipfile.is_zipfile(path):
        raise UserError(f"--ckpt_path: {path} is not a whole checkpoint")
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        arguments = dict(checkpoint.get("hyper_parameters", {}))
    except (RuntimeError, pickle.UnpicklingError, AttributeError) as error:
        raise UserError(f"--ckpt_path: {path} is not a checkpoint of this package ({line_of(error)})") from error
    arguments.pop("_instantiator", None)
    class_path = arguments.pop("_class_path", None) or checkpoint.get("class_path")
    if not arguments:
        return None
    arguments |= {"pretrained": False, "init_from": None}  # the weights are in the checkpoint
    model = {"init_args": arguments, **({"class_path": class_path} if class_path else {})}
    layer = CheckpointLayer(json.dumps({"model": model}))
    layer.path, layer.model = path, model
    return layer


def _check_same_class(layer: CheckpointLayer, given: Any) -> None:
    saved = layer.model.get("class_path", "").rpartition(".")[2]
    named = str(given.get("class_path") or "").rpartition(".")[2] if hasattr(given, "get") else ""
    if saved and named and saved != named:
        raise UserError(f"--ckpt_path: {layer.path} holds a {saved}, the configuration says {named}")
