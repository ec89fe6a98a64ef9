"""The base of all data modules: order, keys and views. A subclass says where images come from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import Dataset

from lit_ssl.checks import check_folder, check_integer
from lit_ssl.random import reseed, resolve_seed
from lit_ssl.spec import ImageSpec
from lit_ssl.views import Batch, View, as_batch, with_keys, with_text, with_views
from lit_ssl.views.batch import CROPS, with_image, without_image
from lit_ssl.views.groups import Group, groups_of

from .dataset import Loader, check_labels, collate, outlast_signals
from .image_files import ImageFiles
from .sampler import SequentialShards, ShardedSampler

__all__ = ["ImageDataModule"]


class ImageDataModule(LightningDataModule):
    """Serves batches as dicts (``image``, ``label``, ``index``, ``key``, ``views``, with captions also ``text``; see
    :mod:`lit_ssl.views`).

    The views are made on the device, by the ``views`` given here or else by those of the module in training; what they
    crop is cut out by the loader, where that decodes files (:class:`ImageFolder`, :class:`ImageText`). To serve
    data of your own, subclass, set ``spec`` in ``__init__``, and in :meth:`load` set ``train_set`` and ``val_set``
    to map datasets whose ``__getitems__`` gives batches, such as :class:`ImageTensors`.

    Attributes:
        spec: the :class:`~lit_ssl.ImageSpec`, known from construction.
        train_set: what pretraining sees; after ``setup``.
        val_set: held-out images, which ``validate``, ``test`` and ``predict`` use; None if there are none.
        labelled_set: labelled images to train probes on, usually ``train_set`` itself; None without labels.
        num_classes, class_names: None without labels.
        class_templates: captions around a class name in the words of the data's own captions, such as "one small {} on
            the left", for zero-shot classification; None leaves them to :class:`~lit_ssl.callbacks.ZeroShot`.

    Args:
        root: folder of the data.
        batch_size: images per process and step; default 256.
        num_workers: worker processes per loader; None takes what suits the data: 0 for images in memory, where a fetch
            costs less than handing a batch from process to process.
        seed: of order and views; None takes that of ``seed_everything``, or 0.
        views: makes the views, instead of the method's own.
        image_size: height and width of views and clean images; None is the data's own size.
        download: whether ``prepare_data`` may fetch missing data from the internet.

    Raises:
        TypeError, ValueError: an argument out of range.
    """

    spec: ImageSpec
    native: ClassVar[ImageSpec | None] = None  # the spec of a data set whose images are all alike
    class_templates: Sequence[str] | None = None
    held_out_by = ""  # what decided on the held-out images, for the line that each run begins with
    clean_images = True  # of a training batch, beside what loaders crop for views

    def __init__(
        self,
        root: str | Path = "data",
        batch_size: int = 256,
        num_workers: int | None = None,
        seed: int | None = None,
        views: View | None = None,
        image_size: int | tuple[int, int] | None = None,
        download: bool = False,
    ) -> None:
        super().__init__()
        check_integer("batch_size", batch_size, 1)
        check_integer("num_workers", num_workers, 0, optional=True)
        if seed is not None:
            resolve_seed(seed)
        if views is not None and not callable(views):
            raise TypeError(f"views must be callable, as those of lit_ssl.views are, got {views!r}")
        for side in image_size if isinstance(image_size, tuple | list) else [image_size]:
            check_integer("image_size", side, optional=True)
        self.root = check_folder("root", root)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.views = views
        self.image_size = tuple(image_size) if isinstance(image_size, list) else image_size
        if self.native is not None:
            self.spec = replace(self.native, size=cast(Any, self.image_size) or self.native.size)
        self.download = download
        self.train_set: Dataset[Batch] | None = None
        self.val_set: Dataset[Batch] | None = None
        self.labelled_set: Dataset[Batch] | None = None
        self.num_classes: int | None = None
        self.class_names: list[str] | None = None
        self.run_seed = 0
        self._cropped: tuple[Group, ...] = ()  # what loaders crop for views

    def load(self) -> None:
        """Sets ``train_set``, ``val_set``, ``labelled_set``, ``num_classes`` and ``class_names``."""
        raise NotImplementedError(f"{type(self).__name__} must define load()")

    def setup(self, stage: str | None = None) -> None:
        """Loads the data, once.

        Raises:
            FileNotFoundError: the data is not there; says where it was looked for and how to get it.
            ValueError: fewer training images than one global batch.
        """
        self.run_seed = resolve_seed(self.seed)
        if self.train_set is None:
            self.load()
            for name in ("train_set", "val_set", "labelled_set"):
                check_labels(name, getattr(self, name), self.num_classes)
        if stage == "fit":
            rank_zero_info(self.describe())
            self._sampler(self._training_set(), shuffle=True)  # too few images: say so before networks are built
        if not self._workers():
            warnings.filterwarnings("ignore", r"The '\w+_dataloader' does not have many workers")

    def fingerprint(self) -> dict[str, Any]:
        """What else of this module decides the numbers of a run, as plain values, for checkpoints."""
        views = None if self.views is None else repr(self.views) if is_dataclass(self.views) else "given"
        found = {"data.seed": self.run_seed, "data.views": views, "clean_images": self.clean_images}
        return {**found, "load_size": getattr(self, "load_size", None)}

    def describe(self) -> str:
        """One line on what was found, which each run prints when it begins."""
        counts = [len(cast(Any, data)) if data is not None else 0 for data in (self.train_set, self.val_set)]
        found = getattr(self.train_set, "found", 0)
        left = f", {found:,} {'row' if found == 1 else 'rows'} left out" if found else ""
        return f"{counts[0]:,} images to train on, {counts[1]:,} held out{self.held_out_by}{left}"

    def _training_set(self) -> Dataset[Batch]:
        if self.train_set is None:
            raise RuntimeError(f"{type(self).__name__} has no data yet: call setup() first")
        return self.train_set

    # Loaders

    def default_workers(self) -> int:
        """Worker processes where ``num_workers`` is None."""
        return 0

    def _workers(self) -> int:
        return self.default_workers() if self.num_workers is None else self.num_workers

    def _sampler(
        self, dataset: Dataset[Batch], shuffle: bool, position: Callable[[], tuple[int, int]] | None = None
    ) -> ShardedSampler:
        overfit = shuffle and self.trainer is not None and cast(Any, self.trainer).overfit_batches > 0
        kind = SequentialShards if overfit else ShardedSampler
        return kind(
            cast(Any, dataset),
            self.batch_size,
            num_replicas=self.trainer.world_size if self.trainer is not None else 1,
            rank=self.trainer.global_rank if self.trainer is not None else 0,
            shuffle=shuffle and not overfit,
            seed=self.run_seed,
            position=position,
            pairs=isinstance(dataset, ImageFiles) and dataset.plan is not None,
        )

    def _loader(self, dataset: Dataset[Batch], sampler: ShardedSampler) -> Loader:
        workers = self._workers()
        return Loader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=outlast_signals,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # else every iterator draws a number from the global generator
        )

    def loader(self, dataset: Dataset[Batch], shuffle: bool = False) -> Loader:
        """Batches of any of the sets, without keys and views: for evaluation outside Lightning's loops.

        Under several processes each gets its share, the same number of batches. A row whose ``index`` is -1 is padding
        and must be left out.

        Args:
            dataset: such as ``train_set`` or ``labelled_set``.
            shuffle: a keyed permutation that drops the last incomplete global batch, instead of the data set's order.
        """
        return self._loader(dataset, self._sampler(dataset, shuffle))

    def _position(self) -> tuple[int, int]:
        """The trainer's epoch, and how many of its batches are done; exact after a resume, too."""
        trainer = cast(Any, self.trainer)
        loop = trainer.fit_loop
        done = loop.epoch_loop.batch_progress.current.ready if trainer.training else 0  # else: iterated by hand
        return loop.epoch_progress.current.processed, done

    def _views(self) -> tuple[Any, ImageSpec]:
        """What makes the views, if anything does, and the spec that the module was built with."""
        module = self.trainer.lightning_module if self.trainer is not None else None
        views = self.views if self.views is not None else getattr(module, "views", None)
        return views, ImageSpec.of(getattr(module, "spec", None) or self.spec)

    def _for_views(self, dataset: Dataset[Batch], square: bool = True) -> Dataset[Batch]:
        """``dataset``, which crops for the views while it decodes, where it decodes and views say what to crop."""
        if not isinstance(dataset, ImageFiles) or self.trainer is None:
            return dataset
        self._cropped = groups_of(*self._views())
        return dataset.cropped(self._cropped, self.run_seed, square) if self._cropped else dataset

    def train_dataloader(self) -> Loader:
        dataset = self._for_views(self._training_set(), self.clean_images)
        position = self._position if self.trainer is not None else None
        return self._loader(dataset, self._sampler(dataset, shuffle=True, position=position))

    def _held_out(self, with_views: bool) -> Any:
        self._training_set()
        if self.val_set is None:
            return []
        return self.loader(self._for_views(self.val_set) if with_views else self.val_set)

    def val_dataloader(self) -> Any:
        return self._held_out(with_views=True)

    def test_dataloader(self) -> Any:
        return self._held_out(with_views=True)

    def predict_dataloader(self) -> Any:
        return self._held_out(with_views=False)

    # Keys and views

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Adds ``key``, and ``text`` to rows with captions: one drawn by key, in evaluation the first.

        In training torch's global generator is seeded anew, by (seed, epoch, batch, rank).

        Padding rows are dropped from evaluation here, where ``index`` is still on the host.
        """
        indexed = isinstance(batch, dict) and "index" in batch
        batch = as_batch(batch)
        trainer = cast(Any, self.trainer)
        if trainer.training:
            # Dropout and drop-path draw from the global generator, which is in no checkpoint: each batch seeds it anew.
            epoch, place = self._position()
            reseed(self.run_seed, f"batch/{epoch}/{place}/{trainer.global_rank}")
            batch = with_keys(batch, self.run_seed, trainer.current_epoch, (trainer.global_step, trainer.global_rank))
            return with_text(batch, draw=True)
        batch = _without_padding(batch) if indexed else batch
        return with_text(with_keys(batch, self.run_seed, -1, (dataloader_idx, trainer.global_rank)), draw=False)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Moves all but ``key``, from which random decisions are drawn on the host."""
        rest = without_image({name: value for name, value in batch.items() if name != "key"})
        return {**with_image(super().transfer_batch_to_device(rest, device, dataloader_idx)), "key": batch["key"]}

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Adds ``views``, but where predicting, for the spec that the module was built with."""
        trainer = cast(Any, self.trainer)
        views, spec = self._views()
        if views is None or trainer.predicting:
            return batch
        if groups_of(views, spec) != self._cropped:  # others than when the loaders were made
            if trainer.training and not self.clean_images and any(name.startswith(CROPS) for name in batch):
                raise RuntimeError(
                    "clean_images=False left nothing to make these views of, which are not those that the loaders crop "
                    "for: leave the views as they are while a loader is in use, or set clean_images=True"
                )
            batch = {name: value for name, value in batch.items() if not name.startswith(CROPS)}
        return with_views(batch, views, spec, trainer.lightning_module.dtype)


def _without_padding(batch: Batch) -> Batch:
    """``batch`` without the rows of index -1, which a sampler added or which could not be read."""
    keep = batch["index"] >= 0
    if bool(keep.all()):
        return batch
    rows = keep.nonzero().flatten()
    taken: Batch = {}
    for name, value in batch.items():
        if isinstance(value, Tensor):
            taken[name] = value[rows]
        else:
            taken[name] = [value[int(r)] for r in rows] if isinstance(value, list) else value
    return taken
