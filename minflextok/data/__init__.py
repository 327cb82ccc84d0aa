"""Images to train on: embedded, downloaded, drawn, or the user's own."""

from .datasets import (
    CIFAR10_CLASSES,
    Dataset,
    Folder,
    Images,
    Stream,
    load_dataset,
    open_image,
    to_float,
    to_uint8,
)

__all__ = [
    "CIFAR10_CLASSES",
    "Dataset",
    "Folder",
    "Images",
    "Stream",
    "load_dataset",
    "open_image",
    "to_float",
    "to_uint8",
]
