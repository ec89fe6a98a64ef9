"""The ``lit-ssl`` command. What needs no training framework answers before one is imported, which takes seconds."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence

from lit_ssl import configs
from lit_ssl.printable import printable

__all__ = ["main"]

SUBCOMMANDS = {
    "fit": "pretrain a model",
    "validate": "validation loss, probe and kNN of a checkpoint",
    "test": "table of raw pixels, untrained encoder and a checkpoint on held-out images",
    "predict": "write the embeddings of held-out images to one safetensors file",
    "check": "decode every file of a data set and list the broken ones",
}


def _usage() -> str:
    subcommands = "\n".join(f"  {name:<9} {what}" for name, what in SUBCOMMANDS.items())
    layers = "\n".join(f"  {name}" for name in configs.names())
    return f"""\
usage: lit-ssl {{{",".join(SUBCOMMANDS)}}} --config LAYER [--config LAYER ...] [--KEY VALUE ...]

{subcommands}

A layer is a YAML file or the name of a shipped one. Layers and flags apply from left to right.

{layers}

examples:
  lit-ssl fit --config quickstart
  lit-ssl fit --config method/simclr --config data/fashion_mnist --data.root DIR --trainer.max_epochs 10
  lit-ssl validate --config data/fashion_mnist --data.root DIR --ckpt_path FILE

  lit-ssl fit --help                  all keys (lit-ssl fit --model.help SimCLR: those of one class)
  lit-ssl fit ... --print_config      the composed configuration, itself a layer
  lit-ssl --traceback fit ...         where an error came from
  lit-ssl --version
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments, by default those of the process.

    Returns:
        The exit code: 0; 2 for a mistake in the arguments, configuration or data, told in one line on stderr; 1 for
        a failure of the program, with its traceback; 75 when the run gave way to a signal, after saving; 130 when
        interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if traceback := "--traceback" in arguments:
        arguments.remove("--traceback")
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage(), end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib import metadata  # a third of the time that --help takes

        print(f"lit-ssl {metadata.version('lit-ssl')}")
        return 0
    if (command := arguments[0]) not in SUBCOMMANDS:
        close = difflib.get_close_matches(command, SUBCOMMANDS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return _fail(f"the first argument must be one of {', '.join(SUBCOMMANDS)}, got {command!r}{hint}")

    from lit_ssl import cli

    try:
        if command == "check":
            from lit_ssl.check_data import check

            return check(arguments)
        cli.run(arguments)
    except cli.UserError as error:
        if traceback:
            raise
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except SystemExit as leave:  # --help and --print_config leave with 0; an interrupted Trainer with 1
        if isinstance(leave.__context__, KeyboardInterrupt):
            return 130
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    return 0


def _fail(message: str, code: int = 2) -> int:
    rank = os.environ.get("LOCAL_RANK", "0")
    where = "" if rank == "0" else f"[rank {rank}] "
    print(f"lit-ssl: {where}error: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    if sys.path[:1] == [os.getcwd()]:  # as the installed command: not every file of the working folder is a module
        del sys.path[0]
    sys.exit(main())
