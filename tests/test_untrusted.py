"""Checkpoints of strangers: whatever their arguments hold, nothing is imported, started, fetched or written."""

import contextlib
import os
import shlex
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_runs import EVALUATION

import lit_ssl
from lit_ssl import ImageSpec, SSLModule, methods
from lit_ssl.__main__ import main
from lit_ssl.callbacks import load_replay
from lit_ssl.checkpoint import CheckpointError, WholeFileIO
from lit_ssl.rebuild import saved_method

SPEC = ImageSpec(8, 1)
METHODS = {name: getattr(lit_ssl, name) for name in methods.__all__}
SMALL = {"backbone": "mlp", "backbone_options": {"hidden": [8]}, "seed": 0}
OWN = {
    "SimCLR": {"projector_hidden": 8, "projector_dim": 4},
    "MoCo": {"projector_hidden": 8, "projector_dim": 4, "queue_size": 16},
    "CLIP": {"text_options": {"width": 8, "depth": 1, "heads": 1}, "embedding_dim": 4},
}


def content_of(name, **arguments):
    """What a checkpoint of a method holds, as it is on disk, with other arguments."""
    method = METHODS[name](spec=SPEC, **SMALL, **OWN.get(name, {}))
    content = {"hyper_parameters": dict(method.hparams), "state_dict": {}}
    method.on_save_checkpoint(content)
    return {**content, "hyper_parameters": {**content["hyper_parameters"], **arguments}}


CONTENT = {name: content_of(name) for name in METHODS}

# What happens in this process, as the interpreter itself reports it.
FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "socket.", "ctypes.dlopen")
seen: list[str] = []
watching = False


def audit(event, args):
    if watching:
        written = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if event.startswith(FORBIDDEN) or written:
            seen.append(f"{event} {args}")


class ImportHook:
    """Asked for each module that is not loaded yet, however it is imported."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if watching:
            seen.append(f"import {name}")


@contextlib.contextmanager
def nothing_happens():
    global watching
    seen.clear()
    watching = True
    try:
        yield
    finally:
        watching = False
    assert not seen


@pytest.fixture(scope="module", autouse=True)
def _audited():
    sys.addaudithook(audit)  # for good: there is no way back
    sys.meta_path.insert(0, ImportHook)
    warnings.simplefilter("ignore")
    for content in CONTENT.values():  # what each method imports when it is first built
        saved_method(content, "a.ckpt").build(SSLModule)
    for backbone in ("vit_tiny_patch16_224", "resnet18"):
        lit_ssl.SimCLR(spec=ImageSpec(32), backbone=backbone).configure_model()
    for name in ("backbone", "views", "optimizer", "tokenizer"):
        with contextlib.suppress(CheckpointError):
            saved_method(content_of("CLIP", **{name: "x" * 9}), "a.ckpt").build(SSLModule)
    yield
    sys.meta_path.remove(ImportHook)


CALLS = [
    "os.system",
    "subprocess.getoutput",
    "builtins.eval",
    "importlib.import_module",
    "evil.Method",
    "this",
    "antigravity",
]
CODE = st.sampled_from(
    [*CALLS, "__import__('os').system('true')", "hf-hub:evil/model", "local-dir:.", "../x", "", "{}", "adamw"]
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-3, 40), st.floats(width=32), CODE, st.text(max_size=8))
CONFIGURATION = st.fixed_dictionaries(
    {"class_path": CODE}, optional={"init_args": st.dictionaries(CODE, CODE, max_size=2)}
)
VALUES = st.recursive(
    st.one_of(SCALARS, CONFIGURATION),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(CODE, st.text(max_size=5)), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(data=st.data())
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_plain_value_in_any_argument(data):
    name = data.draw(st.sampled_from(sorted(CONTENT)))
    content = CONTENT[name]
    others = data.draw(
        st.dictionaries(st.sampled_from(sorted(content["hyper_parameters"])), VALUES, min_size=1, max_size=3)
    )
    top = data.draw(
        st.dictionaries(st.sampled_from(["class_path", "given", "hyper_parameters", "state_dict"]), VALUES, max_size=1)
    )
    hostile = {**content, "hyper_parameters": {**content["hyper_parameters"], **others}, **top}
    with nothing_happens(), contextlib.suppress(CheckpointError):
        saved_method(hostile, "a.ckpt").build(SSLModule)


# By name: what was tried to reach code, and every way in

SHELL = "echo a shell > executed"
GOOD = content_of("SimCLR")
ATTACKS = {
    "a function annotated as a module": content_of(
        "SimCLR",
        backbone={
            "class_path": "torch.fx.symbolic_trace",
            "init_args": {
                "root": "subprocess.getoutput",
                "concrete_args": {"cmd": SHELL, "encoding": None, "errors": None},
            },
        },
        backbone_options=None,
    ),
    "a subclass in the working folder": {**GOOD, "class_path": "evil.Method"},
    "a function as the class": {**GOOD, "class_path": "os.system"},
    "the class that the command noted": {**content_of("SimCLR", _class_path="evil.Method"), "class_path": None},
    "another way to build": {**content_of("SimCLR", _instantiator="evil.build"), "class_path": "evil.Method"},
    "views that are a function": content_of(
        "SimCLR", views={"class_path": "lit_ssl.views.with_views", "init_args": {}}
    ),
    "views by a dotted name": content_of("SimCLR", views="os.system"),
    "functools within options": content_of(
        "SimCLR", backbone_options={"norm": {"class_path": "functools.partial", "init_args": {"func": "os.system"}}}
    ),
    "operator within a list": content_of(
        "SimCLR", optimizer_options={"betas": [{"class_path": "operator.methodcaller"}]}
    ),
    "importlib as the spec": content_of(
        "SimCLR", spec={"class_path": "importlib.import_module", "init_args": {"name": "evil"}}
    ),
    "a model of the hub": content_of("SimCLR", backbone="hf-hub:evil/model", backbone_options=None),
    "a model of a folder": content_of("SimCLR", backbone="local-dir:.", backbone_options=None),
    "weights of timm's own": content_of(
        "SimCLR", backbone="resnet18", backbone_options={"checkpoint_path": "evil.pth"}
    ),
    "an optimizer by a dotted name": content_of("SimCLR", optimizer="os.system"),
    "a tokenizer's file": content_of("CLIP", tokenizer="evil.json"),
    "a text model": content_of("CLIP", text_encoder="transformers:evil"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    lines = [
        "open('executed', 'w').close()",
        "import lit_ssl",
        "class Method(lit_ssl.SimCLR): pass",
        "def build(*a, **k): pass",
    ]
    (tmp_path / "evil.py").write_text("\n".join(lines))
    return tmp_path


def write(content, path="evil.ckpt"):
    WholeFileIO().save_checkpoint(content, path)
    torch.load(path, weights_only=True)  # so it looks clean


def arguments(command):
    return [command, "--config", "data/quickstart", *EVALUATION, "--trainer.logger=false", "--ckpt_path=evil.ckpt"]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("command", ["validate", "fit"])
def test_an_attack_is_refused_in_one_line(attack, command, folder, capsys):
    write(ATTACKS[attack])
    modules = set(sys.modules)
    assert main(arguments(command)) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("lit-ssl: error: ")
    assert not {"evil", "this", "antigravity"} & (set(sys.modules) - modules)
    assert not (folder / "executed").exists()
    for load in (SSLModule.load_from_checkpoint, lit_ssl.SimCLR.load_from_checkpoint):
        with pytest.raises(CheckpointError):
            load("evil.ckpt")
    assert not (folder / "executed").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "by", [["-m", "lit_ssl"], ["-c", "import sys; from lit_ssl.__main__ import main; sys.exit(main())"]]
)
@pytest.mark.parametrize("command", ["validate", "test", "predict", "fit"])
def test_every_command_refuses_them_in_a_process_of_its_own(command, by, folder):
    shell = command in ("validate", "fit")
    write(ATTACKS["a function annotated as a module" if shell else "a subclass in the working folder"])
    done = subprocess.run([sys.executable, *by, *arguments(command)], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "executed").exists()


def test_a_replay_of_a_stranger_names_no_module(folder):
    method = METHODS["SimCLR"](spec=SPEC, **SMALL, **OWN["SimCLR"])
    method.configure_model()
    record = {**GOOD, "state_dict": method.state_dict(), "batch": {}, "step": 1}
    torch.save(record, "good.pt")
    load_replay("good.pt")
    torch.save({**record, "class_path": "evil.Method"}, "evil.pt")
    with pytest.raises(ValueError, match=r"a file may not choose what is imported"):
        load_replay("evil.pt")
    assert not os.path.exists("executed")


# What belongs to the user stays possible


def test_a_method_of_ones_own_is_rebuilt_where_the_user_names_it(folder, capsys):
    (folder / "mine.py").write_text("import lit_ssl\nclass Mine(lit_ssl.SimCLR): pass\n")
    method = METHODS["SimCLR"](spec=ImageSpec(28, 1), **SMALL, **OWN["SimCLR"])
    method.configure_model()
    content = {"hyper_parameters": dict(method.hparams), "state_dict": method.state_dict()}
    method.on_save_checkpoint(content)
    write({**content, "class_path": "mine.Mine", "pytorch-lightning_version": "2.6.0"})
    assert main(arguments("validate")) == 2
    said = capsys.readouterr().err
    assert "name it yourself, --model mine.Mine in the command, or Mine.load_from_checkpoint in Python" in said
    assert main([*arguments("validate"), "--model=mine.Mine"]) == 0
    assert type(SSLModule.load_from_checkpoint("evil.ckpt")).__name__ == "Mine"  # its module is imported by now
    with pytest.raises(CheckpointError, match=r"evil.ckpt holds a Mine, not a MoCo"):
        lit_ssl.MoCo.load_from_checkpoint("evil.ckpt")


def test_flags_go_over_the_file_and_the_file_over_layers(folder, capsys):
    write({**GOOD, "pytorch-lightning_version": "2.6.0"})
    (folder / "layer.yaml").write_text("model: {class_path: SimCLR, init_args: {temperature: 0.9, projector_dim: 77}}")
    flags = shlex.split("--config layer.yaml --model.projector_hidden 99 --model.backbone_options.hidden '[3]'")
    main([*arguments("validate"), *flags])
    said = capsys.readouterr().err
    assert "does not fit the model" in said
    assert "Missing" in said
