"""The flags that people change, for the top of ``--help``, and the one that a misspelt flag meant."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping

from lightning.pytorch import Trainer

import lit_ssl.datamodules
import lit_ssl.methods

__all__ = ["MOST_USED", "meant_flag", "most_used"]

MOST_USED = {
    "--config LAYER": "a layer: a file, or a shipped one's name such as method/simclr or data/image_folder",
    "--data.root DIR": "folder of the data",
    "--data.batch_size N": "samples a process and step",
    "--data.num_workers N": "processes that load data",
    "--data.image_size N": "height and width of images, in pixels",
    "--model.backbone NAME": "convnet, mlp, or any of timm's",
    "--model.lr X": "learning rate of a global batch of 256",
    "--model.warmup_epochs X": "epochs in which the learning rate rises",
    "--model.optimizer NAME": "adamw, sgd, lars, or any of timm's",
    "--model.init_from FILE": "checkpoint that the backbone starts from",
    "--model.seed N": "of the first weights; --seed_everything N is of the whole run",
    "--trainer.max_epochs N": "length of the run",
    "--trainer.devices N": "processes, one a device",
    "--trainer.accelerator NAME": "cpu, gpu, mps; by default what there is",
    "--trainer.precision NAME": "32-true, bf16-mixed, 16-mixed, ...",
    "--trainer.accumulate_grad_batches N": "batches to an optimizer step",
    "--trainer.default_root_dir DIR": "where runs go; by default runs/",
    "--checkpoint.every_n_train_steps N": "how often to save",
    "--ckpt_path FILE": "a checkpoint; last goes on with the newest run",
    "--print_config": "show the whole configuration, itself a layer, and end",
}


def most_used() -> str:
    """What ``--help`` begins with."""
    width = max(map(len, MOST_USED))
    return "\n".join(
        [
            "usage: lit-ssl SUBCOMMAND --config LAYER [--config LAYER ...] [--KEY VALUE ...]",
            "",
            "what people change most:",
            *(f"  {flag:<{width}}  {what}" for flag, what in MOST_USED.items()),
            "",
            "arguments of one class: --model.help SimCLR, --data.help ImageFolder. All other keys:",
            "",
            "",
        ]
    )


def _arguments(kinds: Iterable[type]) -> set[str]:
    found = {name for kind in kinds for base in kind.__mro__ for name in inspect.signature(base.__init__).parameters}  # type: ignore[misc]
    return found - {"self", "args", "kwargs"}


def meant_flag(message: str, callbacks: Mapping[str, type]) -> str:
    """A hint to put behind the parser's message that it knows no such flag.

    Args:
        message: names the flag.
        callbacks: those that are always there, by their key.
    """
    flag = message.partition("--")[2].split(" ")[0].partition("=")[0]
    rooms = {
        "data": _arguments(
            getattr(lit_ssl.datamodules, name) for name in lit_ssl.datamodules.__all__ if name[0].isupper()
        ),
        "model": _arguments(getattr(lit_ssl.methods, name) for name in lit_ssl.methods.__all__),
        "trainer": _arguments([Trainer]),
        **{key: _arguments([kind]) for key, kind in callbacks.items()},
    }
    known = [f"{room}.{name}" for room, names in rooms.items() for name in sorted(names)]
    known += [*rooms, "config", "ckpt_path", "seed_everything", "print_config"]
    meant = next((name for name in known if name.rpartition(".")[2] == flag), None)
    close = [meant] if meant else difflib.get_close_matches(flag, known, n=1)
    return f"; did you mean --{close[0]}?" if close else ""
