"""The laws hold for every method that there is."""

from importlib.resources import files

import yaml
from methods import METHODS

import lit_ssl
from lit_ssl import SSLModule


def test_every_method_is_listed():
    layers = {given[given.index("--config") + 1] for given in METHODS.values()}
    texts = [files("lit_ssl.configs").joinpath(f"{layer}.yaml").read_text() for layer in layers]
    listed = {yaml.safe_load(text)["model"]["class_path"].rpartition(".")[2] for text in texts}
    public = {name: getattr(lit_ssl, name) for name in lit_ssl.__all__}
    methods = {name for name, it in public.items() if isinstance(it, type) and issubclass(it, SSLModule)}
    assert listed == methods - {"SSLModule"}
