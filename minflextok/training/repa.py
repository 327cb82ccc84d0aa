"""REPA: representation alignment with a pretrained network (Yu et al., arXiv 2410.06940; FlexTok,
REPA).

The hidden patches of one early decoder block are projected by an MLP and compared with the features
that a frozen teacher computes from the clean image. The decoder sees only noise and a few tokens,
so it can predict those features only from the tokens: the first tokens then represent the content
that the teacher recognizes, rather than pixels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import first_line
from ..evaluation.classifier import Classifier

Teacher = Callable[[Tensor], Tensor]  # images (B, 3, H, W) in [-1, 1] -> features (B, D, h, w)

DINOV2 = {  # models of facebookresearch/dinov2 on torch.hub
    "dinov2": "dinov2_vitl14",
    "dinov2-l": "dinov2_vitl14",
    "dinov2-b": "dinov2_vitb14",
}


class Repa(nn.Module):
    """A 3-layer MLP from the decoder's width to the teacher's, and the loss 1 - cosine similarity.

    mean (teacher_dim,): the teacher's mean feature. It is subtracted, because a component that all
    images share would make all similarities near 1 (features after a ReLU are never negative).
    """

    def __init__(self, dim: int, mean: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim),
            nn.SiLU(),
            nn.Linear(4 * dim, 4 * dim),
            nn.SiLU(),
            nn.Linear(4 * dim, len(mean)),
        )

    def forward(self, patches: Tensor, features: Tensor) -> Tensor:
        """patches (B, P, D) in row-major order, features (B, teacher_dim, h, w) of the same images
        -> scalar.

        The loss is a mean over patches. Features of another grid are resized to that of the
        patches.
        """
        P, aspect = patches.shape[1], features.shape[2] / features.shape[3]
        rows = round((P * aspect) ** 0.5)  # both grids have one aspect ratio
        size = (rows, P // rows)
        target = F.interpolate(features.float(), size, mode="bilinear", antialias=True)
        target = target.flatten(2).transpose(1, 2) - self.mean  # (B, P, teacher_dim)
        return 1 - F.cosine_similarity(self.mlp(patches).float(), target, dim=-1).mean()


def load_teacher(name: str, device: str | torch.device = "cpu") -> Teacher:
    """A frozen teacher by name, or the weights of a classifier.

    "dinov2-l" (ViT-L/14, the paper's; "dinov2" is the same) or "dinov2-b" (ViT-B/14), both through
    torch.hub, which runs code of their authors; or weights that
    `minflextok train classifier --preset teacher --seed 1` wrote.

    Raises OSError if DINOv2 cannot be downloaded, and ValueError for the evaluation classifier: its
    metrics would be biased for a model that was trained with it.
    """
    if name in DINOV2:
        return load_dinov2(name, device)
    if name.rstrip("/").split("/")[-1].startswith(("judge", "classifier")):
        raise ValueError(
            f"teacher={name!r}: never train with the evaluation classifier; give weights of "
            "`minflextok train classifier --preset teacher`"
        )
    return Classifier.from_pretrained(name).to(device).requires_grad_(False).maps


def load_dinov2(name: str, device: str | torch.device) -> Teacher:
    """The patch features of a DINOv2 on images resized to 224 x 224: (B, 1024 or 768, 16, 16)."""
    try:
        net = torch.hub.load("facebookresearch/dinov2", DINOV2[name], trust_repo=True)
    except Exception as e:
        raise OSError(
            f"teacher={name!r} could not be downloaded ({first_line(e)}): offline, give weights of "
            "a trained teacher"
        ) from None
    net = net.to(device).requires_grad_(False).eval()
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in imagenet)

    def features(images: Tensor) -> Tensor:
        x = ((images + 1) / 2 - mean) / std
        x = F.interpolate(x, (224, 224), mode="bicubic", antialias=True)
        return net.get_intermediate_layers(x, 1, reshape=True)[0]

    return features
