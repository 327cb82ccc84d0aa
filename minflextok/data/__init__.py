"""Images to train on: embedded, downloaded, procedural, or the user's own. One entry:
`load_dataset`.

images.py opens one image; folders.py finds files, splits and classes; shards.py reads tar files,
remote.py those of a URL; datasets.py has the kinds of data sets, which workers.py reads in
processes; waiting.py ends a wait for data that does not come; node.py shares a set in memory;
order.py shuffles and splits; load.py loads by name; shapes.py draws scenes; identity.py hashes a
data set; write.py and records.py write shards.
"""

from .datasets import Dataset, Folder, Images, Latents, Stream, in_order
from .folders import find_images
from .identity import identity
from .images import IMG_EXTENSIONS, Skipped, open_image, to_float, to_uint8
from .load import CIFAR10_CLASSES, load_dataset
from .order import shuffled, validation_split
from .write import cache_latents, shard_folder

__all__ = [
    "CIFAR10_CLASSES",
    "IMG_EXTENSIONS",
    "Dataset",
    "Folder",
    "Images",
    "Latents",
    "Skipped",
    "Stream",
    "cache_latents",
    "find_images",
    "identity",
    "in_order",
    "load_dataset",
    "open_image",
    "shard_folder",
    "shuffled",
    "to_float",
    "to_uint8",
    "validation_split",
]
