import sys

import pytest
import torch

from lit_ssl.networks.text import TextEncoder, TextTransformer, build_text_encoder
from lit_ssl.networks.tokenizers import ByteTokenizer
from lit_ssl.optim import parameter_groups

CAPTIONS = ["a red circle", "two small blue squares at the top", "日本", ""]


def tower(**options):
    torch.manual_seed(0)
    return TextTransformer(ByteTokenizer(40), 40, **{"width": 16, "depth": 2, "heads": 2, **options})


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"pool": "mean"}, {"pool": "mean", "causal": True}])
def test_padding_changes_nothing(options):
    text = tower(**options).double()
    together = text(text.tokenize(CAPTIONS))
    alone = torch.cat([text(text.tokenize([caption])) for caption in CAPTIONS])
    assert together.shape == (4, text.num_features)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    assert (together[:, None] - together[None]).abs().sum(2).fill_diagonal_(1).min() > 1e-3  # and captions differ


@pytest.mark.parametrize("causal", [True, False])
def test_a_causal_tower_does_not_look_ahead(causal):
    text = tower(causal=causal, pool="mean").double()
    states = []
    text.norm.register_forward_hook(lambda *args: states.append(args[2]))
    for caption in ("abcd", "abxy"):
        text(text.tokenize([caption]))
    same = (states[0] - states[1]).abs().amax((0, 2)) < 1e-12
    assert same.tolist() == ([True] * 3 + [False] * 3 if causal else [False] * 6)


def test_the_pools_are_the_last_token_and_the_mean():
    captured = []
    for pool in ("eot", "mean"):
        text = tower(pool=pool)
        text.norm.register_forward_hook(lambda *args: captured.append(args[2]))
        out = text(text.tokenize(["abc", "abcdef"]))
        states = captured.pop()
        if pool == "eot":
            expected = torch.stack([states[0, 4], states[1, 7]])
        else:
            expected = torch.stack([states[0, :5].mean(0), states[1].mean(0)])
        torch.testing.assert_close(out, expected)


def test_order_counts():
    text = tower(pool="mean")
    a, b = text(text.tokenize(["red left blue", "blue left red"]))
    assert (a - b).abs().max() > 1e-4


def test_every_parameter_gets_a_gradient_and_positions_do_not_decay():
    text = tower()
    text(text.tokenize(CAPTIONS)).square().sum().backward()
    assert all(p.grad is not None for p in text.parameters())
    decaying = parameter_groups(text, 0.1)[0]["params"]
    assert any(p is text.token_embedding.weight for p in decaying)
    assert not any(p is text.pos_embed for p in decaying)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 0}, "width must be an integer of at least 1, got 0"),
        ({"depth": 1.5}, "depth must be an integer of at least 1, got 1.5"),
        ({"heads": 3}, r"heads must divide width \(16\), got 3"),
        ({"pool": "max"}, "pool must be one of eot, mean, got 'max'"),
        ({"causal": "yes"}, "causal must be true or false, got 'yes'"),
    ],
)
def test_a_bad_argument_is_named(options, words):
    with pytest.raises(ValueError, match=words):
        tower(**options)


def test_towers_by_name():
    text = build_text_encoder("transformer", context_length=20, options={"width": 8, "depth": 1, "heads": 2})
    assert (text.num_features, len(text.pos_embed)) == (8, 20)
    with pytest.raises(ValueError, match=r"does not take text_options \{'size': 3\}"):
        build_text_encoder("transformer", options={"size": 3})
    for name in ("bert", "transformers:", "timm:vit"):
        with pytest.raises(ValueError, match=rf"text_encoder must be 'transformer', 'transformers:NAME'.*got '{name}'"):
            build_text_encoder(name)
    with pytest.raises(ValueError, match=r"'transformers:x' brings its own .* takes no text_options \{'width': 8\}"):
        build_text_encoder("transformers:x", options={"width": 8})
    with pytest.raises(ValueError, match=r"takes no tokenizer 'a.json'"):
        build_text_encoder("sentence-transformers:x", tokenizer="a.json")


@pytest.mark.parametrize("library", ["transformers", "sentence-transformers"])
def test_without_the_library_the_extra_is_named(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library.replace("-", "_"), None)
    with pytest.raises(ImportError, match=rf"{library}, which is not installed: pip install 'lit-ssl\[{library}\]'"):
        build_text_encoder(f"{library}:some/model")


def check_pretrained(text):
    features = text(text.tokenize(["a red circle", "a"]))
    assert features.shape == (2, text.num_features) == (2, 16)
    assert text.training
    torch.testing.assert_close(features, text(text.tokenize(["a red circle", "a"])), rtol=0, atol=0)  # no dropout
    torch.testing.assert_close(features[1:], text(text.tokenize(["a"])))
    features.square().sum().backward()
    trainable = [p for p in text.parameters() if p.requires_grad]
    assert trainable
    assert all(p.grad is not None for p in trainable)  # the pooler, which nothing here uses, is frozen
    assert not all(p.requires_grad for p in text.parameters())
    assert all(len(row) <= 6 for row in text.tokenize(["a red circle " * 9])["input_ids"])


def test_a_model_of_transformers(bert):
    text = build_text_encoder(f"transformers:{bert}", context_length=6)
    check_pretrained(text)
    again = build_text_encoder(f"transformers:{bert}", context_length=6)
    assert all(torch.equal(a, b) for a, b in zip(text.parameters(), again.parameters(), strict=True))
    fresh = build_text_encoder(f"transformers:{bert}", pretrained=False)
    assert not torch.equal(next(fresh.parameters()), next(text.parameters()))


def test_weights_stored_in_half_precision_train_in_float32(bert, tmp_path):
    from transformers import AutoModel

    AutoModel.from_pretrained(bert).bfloat16().save_pretrained(bert)
    for pretrained in (True, False):
        text = build_text_encoder(f"transformers:{bert}", pretrained=pretrained)
        assert {p.dtype for p in text.parameters()} == {torch.float32}


def test_a_sentence_encoder(bert, tmp_path):
    sentences = pytest.importorskip("sentence_transformers")
    from sentence_transformers import models

    modules = [models.Transformer(str(bert)), models.Pooling(16)]
    sentences.SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "sentences"))
    text = build_text_encoder(f"sentence-transformers:{tmp_path / 'sentences'}", context_length=6)
    check_pretrained(text)
    whole = build_text_encoder(f"transformers:{bert}")
    captions = ["a red circle", "a"]
    torch.testing.assert_close(text(text.tokenize(captions)), whole(whole.tokenize(captions)))  # both pool by the mean


def test_an_encoder_needs_both_of_its_steps():
    class Half(TextEncoder):
        def tokenize(self, text):
            return {}

    with pytest.raises(TypeError, match=r"abstract.*forward"):
        Half()
