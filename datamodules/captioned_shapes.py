"""Generated pictures with captions: image-text pairs without a download, and held-out ones that no training shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lit_ssl.checks import check_integer
from lit_ssl.random import integers, permuted, resolve_seed, sample_key
from lit_ssl.spec import ImageSpec
from lit_ssl.views import Batch, View

from .grammar import COMBINATIONS, VARIANTS, Combination, class_names, class_templates
from .module import ImageDataModule
from .shapes import draw

__all__ = ["CaptionedShapes", "ShapePictures"]

HELD_OUT = COMBINATIONS // 4
"""How many combinations no training picture shows."""

_SPLIT_SEED = 2103  # the split is the same in every run
_SMALLEST = 28  # pixels: below, a caption can no longer be read off its picture


class ShapePictures(Dataset[Batch]):
    """Pictures of the given combinations, drawn when they are asked for, each a pure function of (seed, split, index).

    Picture i shows combination i of the list, which starts anew when it is through: with other places, turns, shades
    and backgrounds.

    Args:
        combinations: at least one.
        length: how many pictures.
        size: their height and width in pixels.
        seed: of what a combination leaves open.
        split: a number that tells the training pictures of a seed from its held-out ones.
        wordings: captions of each picture: the canonical one, and others drawn by the picture's key.
    """

    def __init__(
        self,
        combinations: Sequence[Combination],
        length: int,
        *,
        size: tuple[int, int],
        seed: int,
        split: int,
        wordings: int,
    ) -> None:
        self.combinations = combinations
        self.length, self.size, self.seed, self.split, self.wordings = length, size, seed, split, wordings
        self._table = torch.tensor(combinations)
        self._labels = torch.tensor([combination.label for combination in combinations])

    def __len__(self) -> int:
        return self.length

    def combination(self, i: int) -> Combination:
        """What picture ``i`` shows."""
        return self.combinations[i % len(self.combinations)]

    @property
    def labels(self) -> Tensor:
        """int64 (N,), of all pictures."""
        return self._labels[torch.arange(self.length) % len(self._labels)]

    def __getitem__(self, i: int) -> Batch:
        """One sample: ``image`` uint8 (3, H, W), ``label`` and ``index`` int64 scalars, ``text`` and ``captions``."""
        if not -1 <= i < len(self):
            raise IndexError(f"index {i} is out of range for {len(self)} images")
        return {name: rows[0] for name, rows in self.__getitems__([i]).items()}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A batch: ``image`` uint8 (B, 3, H, W), ``label`` and ``index`` int64 (B,), ``text`` and ``captions``.

        ``text`` holds the canonical caption of each row, ``captions`` a tuple of all. Index -1 is a padding row.
        """
        index = torch.as_tensor(indices, dtype=torch.int64)
        row = index.clamp(min=0)
        shown = row % len(self._table)
        key = sample_key(self.seed, self.split, row)
        others = (integers(key, "shapes/wording", VARIANTS - 1, (self.wordings - 1,)) + 1).tolist()
        captions = [
            tuple(self.combinations[place].caption(variant) for variant in (0, *variants))
            for place, variants in zip(shown.tolist(), others, strict=True)
        ]
        return {
            "image": draw(self._table[shown], self.size, key=key, seed=self.seed),
            "label": torch.where(index < 0, -1, self._labels[shown]),
            "index": index,
            "text": [ways[0] for ways in captions],
            "captions": captions,
        }


class CaptionedShapes(ImageDataModule):
    """Pictures of one to four like shapes and captions that tell all about them, generated: nothing is downloaded.

    A picture shows a combination of shape (8), colour (8), size (2), position (9) and count (4), such as "two small red
    circles at the top left"; its exact place, turn, shade and background vary. Of the 4,608 combinations 1,152 are held
    out in every run: no training picture shows one of these, though each word of their captions occurs in training. So
    retrieval among held-out pictures, whose captions all differ while ``val_size`` is at most 1,152, measures whether
    attributes are composed.

    Each picture has several captions, the canonical wording first. Training draws one for each sample and epoch, by
    key; evaluation takes the first. Labels are the 64 classes "red circle", "red square" and so on. Captions tell left
    from right and name colours: views that flip, crop tightly or change hues contradict them.

    Args:
        batch_size, num_workers, seed, views: see :class:`ImageDataModule`.
        image_size: height and width of the pictures, at least 28; default 32. Shapes lie in the central square.
        train_size: how many pictures train; default 20,000. They take turns through the 3,456 training combinations.
        val_size: how many are held out; by default each held-out combination once.
        wordings: captions of each training picture, from 1 to 64; default 5, as many as in COCO (Chen et al. 2015,
            arXiv:1504.00325).
        data_seed: of the pictures, apart from ``seed``, so that runs of different seeds see the same data; default 0.

    Raises:
        ValueError: an argument out of range.
    """

    native = ImageSpec(32, 3, (0.2354, 0.2319, 0.2313), (0.1264, 0.1113, 0.1165))  # of the training pictures
    class_templates = tuple(class_templates())

    def __init__(
        self,
        batch_size: int = 256,
        num_workers: int | None = None,
        seed: int | None = None,
        views: View | None = None,
        image_size: int | tuple[int, int] | None = None,
        train_size: int = 20_000,
        val_size: int = HELD_OUT,
        wordings: int = 5,
        data_seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed, views=views, image_size=image_size)
        if min(self.spec.size) < _SMALLEST:
            raise ValueError(f"image_size must be at least {_SMALLEST}, got {image_size!r}")
        check_integer("train_size", train_size)
        check_integer("val_size", val_size)
        check_integer("wordings", wordings)
        if wordings > VARIANTS:
            raise ValueError(f"wordings must be at most {VARIANTS}, got {wordings!r}")
        check_integer("data_seed", data_seed, 0)
        self.train_size, self.val_size, self.wordings = train_size, val_size, wordings
        self.data_seed = resolve_seed(data_seed)

    def load(self) -> None:
        order = permuted(torch.arange(COMBINATIONS), COMBINATIONS, _SPLIT_SEED, "captioned shapes").tolist()
        combinations = [Combination.of(number) for number in order]
        arguments: dict[str, Any] = {"size": self.spec.size, "seed": self.data_seed}
        self.train_set = self.labelled_set = ShapePictures(
            combinations[HELD_OUT:], self.train_size, split=0, wordings=self.wordings, **arguments
        )
        self.val_set = ShapePictures(combinations[:HELD_OUT], self.val_size, split=1, wordings=1, **arguments)
        self.class_names = class_names()
        self.num_classes = len(self.class_names)
