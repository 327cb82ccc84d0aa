"""What ids tell about classes, and how ids are used: information in bits, by position."""

import math

import torch
from torch import Tensor


def entropy(counts: Tensor) -> Tensor:
    """The plug-in entropy in bits of the distributions counts (..., n): (...)."""
    p = counts.double() / counts.sum(-1, keepdim=True)
    return -torch.xlogy(p, p).sum(-1) / math.log(2)


def joint_counts(ids: Tensor, labels: Tensor, num_labels: int) -> Tensor:
    """How often each id of ids (N,) meets each label (N,): (distinct ids, num_labels)."""
    rows = ids.unique(return_inverse=True)[1]
    cells = torch.bincount(rows * num_labels + labels, minlength=(int(rows.max()) + 1) * num_labels)
    return cells.view(-1, num_labels)


def mutual_information(ids: Tensor, labels: Tensor) -> float:
    """The plug-in estimate in bits of I(id; label) for pairs (N,), (N,). It is too large, by about
    (ids in use - 1) (labels - 1) / (2 N ln 2) bits where the two are independent."""
    joint = joint_counts(ids, labels, int(labels.max()) + 1)
    marginals = entropy(joint.sum(0)) + entropy(joint.sum(1))
    return (marginals - entropy(joint.flatten())).item()


def corrected_information(ids: Tensor, labels: Tensor, shuffles: int = 20, seed: int = 0) -> dict:
    """I(id; label) in bits: the plug-in estimate, the mean of that estimate with shuffled labels
    (its bias where nothing is known), the difference, and the share of shuffles with as large an
    estimate.

    The bias shrinks where ids determine labels, so the difference is too small rather than too
    large.
    """
    g = torch.Generator().manual_seed(seed)
    plugin = mutual_information(ids, labels)
    null = torch.tensor(
        [
            mutual_information(ids, labels[torch.randperm(len(labels), generator=g)])
            for _ in range(shuffles)
        ]
    )
    return {
        "plug-in": plugin,
        "shuffled": null.mean().item(),
        "corrected": plugin - null.mean().item(),
        "p": (1 + int((null >= plugin).sum())) / (1 + shuffles),
    }


def digits(ids: Tensor, levels: tuple[int, ...]) -> Tensor:
    """ids (...) -> the digits of FSQ (..., F), channel 0 first."""
    basis = torch.tensor([math.prod(levels[:i]) for i in range(len(levels))])
    return ids[..., None] // basis % torch.tensor(levels)


class Vocabulary:
    """The classes of the ids of one token: each id stands for the class that is most frequent among
    the training images that have it; an id without one, for the most frequent class of all."""

    def __init__(self, ids: Tensor, labels: Tensor, vocab_size: int):
        counts = torch.zeros(vocab_size, int(labels.max()) + 1, dtype=torch.long)
        counts.index_put_((ids, labels), torch.ones_like(ids), accumulate=True)
        seen = counts.sum(1) > 0
        self.classes = torch.where(seen, counts.argmax(1), labels.bincount().argmax())

    def correct(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Whether the class of each id (N,) is the label (N,) of its image. The mean is the purity
        of the ids as clusters, on images that did not choose their classes."""
        return self.classes[ids] == labels
