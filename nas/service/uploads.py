"""Example sets that clients send, and the networks that are sampled for them."""

from pathlib import Path
from typing import final

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from nas.data.module import ImageDataModule, Splits
from nas.data.splits import stratified_split
from nas.data.tensors import ImageSplit
from nas.dataset_maker import EXAMPLES, DatasetMaker
from nas.making import Request
from nas.service.problems import RefusedError
from nas.service.schemas import SampleRequest
from search_spaces import derive_seed

__all__ = ["UploadedImages", "read_examples", "sample"]

_HELD = 0.2
_BATCH = 64


@final
class UploadedImages(ImageDataModule):
    """Images that a client has sent; there is no test split.

    Args:
        images: ``(N, C, H, W)`` uint8.
        labels: ``(N,)`` int64.
        num_classes: number of classes.
        held: share of every class that is kept from the condition, to choose among sampled networks; 0 for none.
    """

    def __init__(self, images: Tensor, labels: Tensor, num_classes: int, *, held: float) -> None:
        super().__init__(
            batch_size=min(_BATCH, len(labels)),
            eval_batch_size=512,
            validation_fraction=0.5,
            crop_padding=0,
            flip=False,
            split_seed=0,
            seed=0,
        )
        self.images, self.labels, self.classes, self.held = images, labels, num_classes, held

    def load(self) -> Splits:
        """Set aside what chooses."""
        whole = ImageSplit(self.images, self.labels)
        count = round(self.held * len(whole))
        train, validation = stratified_split(self.labels, count, seed=derive_seed(0, "validation"))
        nothing = whole.take(validation[:0])
        return Splits(whole.take(train), whole.take(validation), nothing, self.classes)


def read_examples(body: bytes, maker: DatasetMaker, request: SampleRequest) -> UploadedImages:
    """Read an upload: safetensors with ``inputs`` (N, C, H, W) uint8 and ``labels`` (N,) int64, nothing is unpickled.

    Raises:
        RefusedError: it is something else, or does not suit the hypernetwork (422).
    """
    try:
        tensors = load(body)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise _refused(
            f"the body must be a safetensors file, got {len(body):,} bytes that are none ({error})"
        ) from error
    if tensors.keys() != {"inputs", "labels"}:
        raise _refused(f"the file must hold exactly the tensors inputs and labels, got {sorted(tensors)[:16]}")
    images, labels = tensors["inputs"], tensors["labels"]
    shape, classes = maker.sampler.image_shape, maker.sampler.examples.classes
    if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != shape:
        raise _refused(
            f"inputs must be images (N, {', '.join(map(str, shape))}) of type uint8, got {tuple(images.shape)} of type "
            f"{_name(images)}"
        )
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise _refused(
            f"labels must be ({len(images)},) of type int64, one for each input, got {tuple(labels.shape)} of type "
            f"{_name(labels)}"
        )
    if not len(labels) or int(labels.min()) < 0 or int(labels.max()) >= classes:
        given = f"{int(labels.min())} to {int(labels.max())}" if len(labels) else "none"
        raise _refused(f"labels must lie between 0 and {classes - 1}, got {given}")
    data = UploadedImages(images, labels, classes, held=_HELD if request.count > 1 else 0.0)
    wanted = EXAMPLES if request.examples is None else request.examples
    found = torch.bincount(data.splits.train.labels, minlength=classes)
    few = {label: count for label, count in enumerate(found.tolist()) if count < wanted}
    if few:
        kept = f", a fifth being set aside to choose among {request.count} networks" if request.count > 1 else ""
        raise _refused(
            f"each class needs {wanted} examples{kept}, got {dict(list(few.items())[:16])} (class: examples); send "
            "more, or ask for fewer with ?examples="
        )
    return data


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _refused(message: str) -> RefusedError:
    return RefusedError(422, "invalid_upload", message[:4000])


def sample(maker: DatasetMaker, data: UploadedImages, request: SampleRequest, path: Path) -> bytes:
    """Sample networks for an upload, keep the best in ``path``, and return the content of the file."""
    asked = Request(seed=request.seed, examples=request.examples, count=request.count)
    return DatasetMaker(maker.sampler, data).write(asked, path, evaluate=False).path.read_bytes()
