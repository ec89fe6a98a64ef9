"""Text towers: a small transformer of our own, and by option any of ``transformers`` or ``sentence-transformers``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_ssl.checks import check_choice, check_flag, check_integer

from .tokenizers import Tokenizer, build_tokenizer

__all__ = ["SentenceEncoder", "TextEncoder", "TextTransformer", "TransformersEncoder", "build_text_encoder"]

Tokens = dict[str, Tensor]


class TextEncoder(nn.Module, ABC):
    """Captions to features in two steps: :meth:`tokenize` on the host, ``forward`` of its tokens on the device.

    Attributes:
        num_features: D.
    """

    num_features: int

    @abstractmethod
    def tokenize(self, text: Sequence[str]) -> Tokens:
        """B captions to tensors on the host, B rows each."""

    @abstractmethod
    def forward(self, tokens: Tokens) -> Tensor:
        """What :meth:`tokenize` gave, on the module's device, to features (B, D)."""


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """x: (B, L, width); allowed: bool, broadcasts to (B, 1, L, L), True where a row's token may look."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, L, d)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        x = x + self.proj(seen.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class TextTransformer(TextEncoder):
    """A pre-norm transformer over tokens with learned positions.

    Radford et al. 2021, arXiv:2103.00020, section 2.4, whose tower is ``width=512, depth=12, heads=8, causal=True`` and
    whose first weights these are (its public code).

    Args:
        tokenizer: makes tokens of captions.
        context_length: most tokens a caption, as the tokenizer has it.
        width: of the tokens; D. Default 256: small, for small data.
        depth: number of blocks. Default 6.
        heads: of attention; divides ``width``. Default 4.
        pool: ``eot``, the last token's state (CLIP), or ``mean`` of all states that are no padding.
        causal: let a token see only those before it (CLIP; SigLIP, arXiv:2303.15343, does not).

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        context_length: int = 256,
        width: int = 256,
        depth: int = 6,
        heads: int = 4,
        pool: Literal["eot", "mean"] = "eot",
        causal: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("context_length", context_length), ("width", width), ("depth", depth), ("heads", heads)):
            check_integer(name, value)
        if width % heads:
            raise ValueError(f"heads must divide width ({width}), got {heads}")
        check_choice("pool", pool, ("eot", "mean"))
        check_flag("causal", causal)
        self.tokenizer, self.pool, self.causal = tokenizer, pool, causal
        self.num_features = width
        self.token_embedding = nn.Embedding(tokenizer.size, width)
        self.pos_embed = nn.Parameter(torch.empty(context_length, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self._initialize(width, depth)

    def _initialize(self, width: int, depth: int) -> None:
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.01)
        into_stream = (width * 2 * depth) ** -0.5  # 2 x depth branches add up on the residual stream
        for block in self.blocks:
            for layer, std in (
                (block.qkv, width**-0.5),
                (block.proj, into_stream),
                (block.fc1, (2 * width) ** -0.5),
                (block.fc2, into_stream),
            ):
                nn.init.normal_(layer.weight, std=std)  # type: ignore[union-attr, arg-type]
                nn.init.zeros_(layer.bias)  # type: ignore[union-attr, arg-type]

    def tokenize(self, text: Sequence[str]) -> Tokens:
        return self.tokenizer(text)

    def forward(self, tokens: Tokens) -> Tensor:
        ids, mask = tokens["ids"], tokens["mask"]  # (B, L) both
        length = ids.shape[1]
        allowed = mask[:, None, None, :]
        if self.causal:
            allowed = allowed & torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        x = self.token_embedding(ids) + self.pos_embed[:length]
        for block in self.blocks:
            x = block(x, allowed)
        return pooled(self.norm(x), mask, self.pool)


def pooled(states: Tensor, mask: Tensor, pool: str) -> Tensor:
    """States (B, L, D) to features (B, D): the last one that ``mask`` (B, L) marks as a token's, or their mean."""
    if pool == "eot":
        last = mask.sum(1) - 1
        return states.gather(1, last[:, None, None].expand(-1, 1, states.shape[2])).squeeze(1)
    weight = mask.to(states.dtype)[:, :, None]
    return (states * weight).sum(1) / weight.sum(1)


class TransformersEncoder(TextEncoder):
    """Any model of the ``transformers`` library (the extra of that name); features are the mean of its last states.

    Two-tower models give their text tower, encoder-decoders their encoder. Dropout is off: a step's randomness belongs
    to its samples.

    Args:
        name: on the Hugging Face Hub, or a folder that ``save_pretrained`` wrote, of the model and its tokenizer.
        pretrained: load its weights; otherwise only its architecture is taken.
        context_length: most tokens a caption.

    Raises:
        ImportError: ``transformers`` is not installed; names the extra.
    """

    def __init__(self, name: str, pretrained: bool = True, context_length: int = 256) -> None:
        super().__init__()
        try:
            from transformers import AutoConfig, AutoModel, AutoTokenizer
        except ImportError:
            raise ImportError(
                "text_encoder 'transformers:...' needs transformers, which is not installed: "
                "pip install 'lit-ssl[transformers]'"
            ) from None
        model = (
            AutoModel.from_pretrained(name) if pretrained else AutoModel.from_config(AutoConfig.from_pretrained(name))
        )
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        self.model = getattr(model, "text_model", model)
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        if self.tokenizer.pad_token is None:  # GPT-2 and its kin; the mask hides what stands there
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.tokenizer.padding_side = "right"
        positions = getattr(self.model.config, "max_position_embeddings", None) or context_length
        self.context_length = min(context_length, self.tokenizer.model_max_length, positions)
        _prepare(self)

    def tokenize(self, text: Sequence[str]) -> Tokens:
        return dict(
            self.tokenizer(
                list(text), padding=True, truncation=True, max_length=self.context_length, return_tensors="pt"
            )
        )

    def forward(self, tokens: Tokens) -> Tensor:
        return pooled(self.model(**tokens).last_hidden_state, tokens["attention_mask"], "mean")


class SentenceEncoder(TextEncoder):
    """Any model of the ``sentence-transformers`` library (the extra of that name), with its own pooling.

    Dropout is off, as in :class:`TransformersEncoder`.

    Args:
        name: on the Hugging Face Hub, or a folder that its ``save`` wrote.
        context_length: most tokens a caption, where the model allows as many.

    Raises:
        ImportError: ``sentence-transformers`` is not installed; names the extra.
    """

    def __init__(self, name: str, context_length: int = 256) -> None:
        super().__init__()
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise ImportError(
                "text_encoder 'sentence-transformers:...' needs sentence-transformers, which is not installed: "
                "pip install 'lit-ssl[sentence-transformers]'"
            ) from None
        self.model = SentenceTransformer(name, device="cpu")
        if self.model.max_seq_length is not None:
            self.model.max_seq_length = min(self.model.max_seq_length, context_length)
        _prepare(self)

    def tokenize(self, text: Sequence[str]) -> Tokens:
        tokenize = getattr(self.model, "preprocess", None) or self.model.tokenize  # renamed in version 5
        return {name: value for name, value in tokenize(list(text)).items() if isinstance(value, Tensor)}

    def forward(self, tokens: Tokens) -> Tensor:
        return self.model(dict(tokens))["sentence_embedding"]


def _prepare(encoder: TextEncoder) -> None:
    """Turn dropout off, find ``num_features``, and freeze what the features do not depend on, such as a pooler.

    DDP waits for the gradient of every trainable parameter; an unused one would stop it. Weights are float32, in
    whatever precision they were stored: the trainer's says what they become.
    """
    encoder.float()
    for child in encoder.modules():
        if isinstance(child, nn.Dropout):
            child.p = 0.0
        for name, value in vars(child).items():
            if "drop" in name and isinstance(value, float):  # attention's rate is often a plain number
                setattr(child, name, 0.0)
    encoder.train()
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    with torch.enable_grad():
        features = encoder(encoder.tokenize(["a caption"]))
        for parameter, grad in zip(
            parameters, torch.autograd.grad(features.sum(), parameters, allow_unused=True), strict=True
        ):
            parameter.requires_grad_(grad is not None)
    encoder.num_features = features.shape[1]


def build_text_encoder(
    name: str = "transformer",
    *,
    pretrained: bool = True,
    tokenizer: str = "bytes",
    context_length: int = 256,
    options: Mapping[str, Any] | None = None,
) -> TextEncoder:
    """A text tower by name.

    Args:
        name: ``"transformer"`` (:class:`TextTransformer`), ``"transformers:NAME"`` (:class:`TransformersEncoder`) or
            ``"sentence-transformers:NAME"`` (:class:`SentenceEncoder`).
        pretrained: load the weights of a named model.
        tokenizer: of our transformer, see :func:`~lit_ssl.networks.tokenizers.build_tokenizer`.
        context_length: most tokens a caption.
        options: further arguments of :class:`TextTransformer`.

    Raises:
        ImportError: a library is not installed; names the extra that brings it.
        ValueError: an unknown name, options that the tower does not take, or an argument out of range.
    """
    library, _, model = name.partition(":")
    options = dict(options or {})
    if name == "transformer":
        try:
            return TextTransformer(build_tokenizer(tokenizer, context_length), context_length, **options)
        except TypeError as error:
            raise ValueError(f"text_encoder {name!r} does not take text_options {options!r}: {error}") from error
    if library not in ("transformers", "sentence-transformers") or not model:
        raise ValueError(
            "text_encoder must be 'transformer', 'transformers:NAME' or 'sentence-transformers:NAME', got " + repr(name)
        )
    if options or tokenizer != "bytes":
        given = f"text_options {options!r}" if options else f"tokenizer {tokenizer!r}"
        raise ValueError(f"text_encoder {name!r} brings its own architecture and tokenizer and takes no {given}")
    if library == "transformers":
        return TransformersEncoder(model, pretrained, context_length)
    return SentenceEncoder(model, context_length)
