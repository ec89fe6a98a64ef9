"""What a batch is, and how it comes by its keys and views.

Data modules call these functions from their transfer hooks; :class:`lit_ssl.SSLModule` calls the same ones for a plain
``DataLoader``. A batch is a dict:

- ``image``: uint8 (B, C, H, W), 0 to 255; of files with ``clean_images=False`` in training what the first view crops.
- ``label``: int64 (B,), -1 for none.
- ``index``: int64 (B,), the sample's place in its data set; -1 for a row that has none (padding, or a plain loader).
- ``key``: int64 (B,), the sample's random key for this epoch. It stays on the host, whatever the batch's device, so
  that every random decision is known there without waiting for the device.
- ``text``: a list of B captions, where the data have any.
- ``views``: list of (B, C, h, w) in [0, 1].
- ``crops/…``: uint8 (B, V, C, h, w), what a loader that decodes files has cropped for the views, by their group
  (:class:`lit_ssl.views.groups.Group`). They stay in the batch, so that its views can be made again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from lit_ssl.random import sample_key, uniform
from lit_ssl.spec import ImageSpec

__all__ = [
    "CROPS",
    "Batch",
    "View",
    "as_batch",
    "with_image",
    "with_keys",
    "with_text",
    "with_views",
    "without_image",
]

Batch: TypeAlias = dict[str, Any]

CROPS = "crops/"


@runtime_checkable
class View(Protocol):
    """Anything that makes views of a batch of images; every class of ``lit_ssl.views`` is one."""

    def __call__(self, image: Tensor, key: Tensor, spec: ImageSpec, dtype: torch.dtype) -> list[Tensor]:
        """Views of ``image``, each (B, C, h, w) in [0, 1] and in ``dtype``, on the device of ``image``.

        Args:
            image: uint8 (B, C, H, W).
            key: int64 (B,) on the host; the draws of a row are a pure function of its key.
            spec: the size of the views, and the number of channels.
            dtype: a floating-point dtype.
        """
        ...


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a dict with the keys {sorted(map(str, value))}"
    return f"a {type(value).__name__}"


def _checked_image(image: Any) -> Tensor:
    wanted = "images must be a uint8 tensor of shape (B, C, H, W) with values 0 to 255"
    if not isinstance(image, Tensor):
        raise TypeError(f"{wanted}, got {_described(image)}")
    if image.dtype != torch.uint8:
        hint = "; leave out ToTensor, ToDtype and Normalize: views scale, the method normalises"
        raise TypeError(f"{wanted}, got {_described(image)}{hint if image.is_floating_point() else ''}")
    if image.ndim != 4:
        hint = "; give gray images a channel with image.unsqueeze(1)" if image.ndim == 3 else ""
        raise ValueError(f"{wanted}, got {_described(image)}{hint}")
    return image


def _is_text(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)


def _checked_text(value: Any, image: Tensor) -> list[str]:
    if not _is_text(value) or len(value) != len(image):
        got = f"{len(value)} of them" if _is_text(value) else _described(value)
        raise ValueError(f"text must be a list of {len(image)} strings, one caption an image, got {got}")
    return list(value)


def _checked_rows(name: str, value: Any, image: Tensor) -> Tensor:
    rows = image.shape[0]
    if value is None:
        return torch.full((rows,), -1, dtype=torch.int64, device=image.device)
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex() or value.shape != (rows,):
        what = "class numbers (-1 for none)" if name == "label" else "places in the data set"
        hint = "; captions go into a dict with the keys 'image' and 'text'" if _is_text(value) else ""
        raise ValueError(f"{name} must be an integer tensor of shape ({rows},), {what}, got {_described(value)}{hint}")
    return value.to(torch.int64)


def as_batch(raw: Any) -> Batch:
    """The batch that a loader's output means.

    Args:
        raw: a uint8 tensor (B, C, H, W); or a tuple or list ``(image,)``, ``(image, label)`` or ``(image, label, …)``,
            whose further elements are left out; or a dict with ``image`` and, where there are any, ``label`` (or, as in
            Hugging Face's data sets, ``labels``),
            ``index``, ``text`` (B captions) and entries of one's own, which are kept.

    Returns:
        A new dict; ``label`` and ``index`` are -1 where ``raw`` has none.

    Raises:
        TypeError: the images are no uint8 tensor (floats, a list of images of several sizes), or ``raw`` is no batch.
        ValueError: the images have not four dimensions, labels or indices are not one integer a row, or text is not
            one string a row.
    """
    if isinstance(raw, Tensor):
        raw = {"image": raw}
    elif isinstance(raw, Mapping):
        if "image" not in raw:
            raise ValueError(f"a batch that is a dict needs the key 'image', got {_described(raw)}")
        if "label" not in raw and "labels" in raw:  # as Hugging Face's models have it
            raw = {"label" if name == "labels" else name: value for name, value in raw.items()}
    elif isinstance(raw, Sequence) and not isinstance(raw, str) and len(raw) > 0:
        raw = {"image": raw[0], "label": raw[1] if len(raw) > 1 else None}
    else:
        raise TypeError(f"a batch must be a tensor of images, (image, label) or a dict, got {_described(raw)}")
    image = _checked_image(raw["image"])
    rows = {name: _checked_rows(name, raw.get(name), image) for name in ("label", "index")}
    text = {"text": _checked_text(raw["text"], image)} if "text" in raw else {}
    return {**raw, "image": image, **rows, **text}


def with_keys(batch: Batch, seed: int, epoch: int, salt: Sequence[int] | None = None) -> Batch:
    """``batch`` with ``key``: int64 (B,) on the host.

    A row with an index gets the key of (seed, epoch, index), wherever and in whatever company it comes. A row without
    one (a plain loader's) gets the key of (seed, epoch, salt, place in the batch).

    Args:
        batch: as :func:`as_batch` gives it, before its transfer to the device.
        seed: the run's seed, resolved.
        epoch: the epoch, -1 for validation, whose views are then the same every time.
        salt: integers that tell one plain loader's batch from another, such as (global step, rank).
    """
    index = batch["index"].cpu()  # on the host already, unless a plain loader yields device tensors
    place = torch.arange(len(index))
    for number in (*(salt or ()), seed):
        place = sample_key(number, epoch, place)
    return {**batch, "key": torch.where(index < 0, place, sample_key(seed, epoch, index))}


def with_text(batch: Batch, draw: bool) -> Batch:
    """``batch`` with one caption of each row as ``text``, in place of its ``captions``; as it is if it has none.

    Args:
        batch: with ``captions``, a sequence of one or several strings for each row, and ``key``.
        draw: take one by the row's key, so that epochs differ; else the first.
    """
    if "captions" not in batch:
        return batch
    batch = dict(batch)
    captions = batch.pop("captions")
    if draw:
        count = torch.tensor([len(ways) for ways in captions])
        places = (uniform(batch["key"], "caption") * count).to(torch.int64).minimum(count - 1).tolist()
    else:
        places = [0] * len(captions)
    return {**batch, "text": [ways[place] for ways, place in zip(captions, places, strict=True)]}


def _first_crops(batch: Batch) -> Tensor | None:
    return next((value[:, 0] for name, value in batch.items() if name.startswith(CROPS)), None)


def with_image(batch: Batch) -> Batch:
    """``batch`` with ``image``: where it has crops only, what the first view shows of them, in their memory."""
    crops = None if "image" in batch else _first_crops(batch)
    return batch if crops is None else {"image": crops, **batch}


def without_image(batch: Batch) -> Batch:
    """``batch`` without an ``image`` that :func:`with_image` gave it, and can give it again."""
    crops = _first_crops(batch)
    if crops is None or batch["image"].data_ptr() != crops.data_ptr():
        return batch
    return {name: value for name, value in batch.items() if name != "image"}


def with_views(batch: Batch, views: View, spec: ImageSpec, dtype: torch.dtype) -> Batch:
    """``batch`` with ``views``: what ``views`` makes of its images, each (B, C, h, w) in [0, 1] and in ``dtype``.

    Args:
        batch: with ``image``, on any device, and ``key``, on the host; with crops only if ``views`` are what they were
            made for.
        views: called as :class:`View` says, and with the crops if there are any.
        spec: what the method was built for.
        dtype: the module's dtype.

    Raises:
        ValueError: the images have another number of channels than ``spec``, or ``batch`` has no key.
    """
    image = batch["image"]
    if image.shape[1] != spec.channels:
        hint = "; move the channels to the front with image.permute(0, 3, 1, 2)"
        last = image.shape[3] == spec.channels
        raise ValueError(
            f"the spec says channels={spec.channels}, but images have shape {tuple(image.shape)}: "
            f"{image.shape[1]} channels{hint if last else ''}"
        )
    if "key" not in batch:
        raise ValueError("the batch has no 'key'; call with_keys before its transfer to the device")
    crops = {n.removeprefix(CROPS): x.transpose(0, 1).flatten(0, 1) for n, x in batch.items() if n.startswith(CROPS)}
    make: Callable[..., list[Tensor]] = views
    made = make(image, batch["key"], spec, dtype, *([crops] if crops else []))
    return {**batch, "views": made}
