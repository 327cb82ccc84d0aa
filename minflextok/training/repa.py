"""Representation alignment (Yu et al., arXiv 2410.06940; FlexTok paper, sec. 3.2): an early decoder block learns to see
what a pretrained network sees.

The hidden patches of one decoder block are projected and compared with the features that a frozen teacher gives for the
clean image. From noise and few tokens, those features can only come from the tokens: so the first tokens are pushed
towards what the teacher finds important, which is content rather than pixels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..evaluation.classifier import Classifier
from .runtime import first_line

Teacher = Callable[[Tensor], Tensor]  # images (B, 3, H, W) in [-1, 1] -> features (B, D, h, w)


class Repa(nn.Module):
    """A 3-layer MLP from the decoder's width to the teacher's, and the loss 1 - cosine similarity, a mean over patches.

    mean (teacher_dim,): what the teacher gives on average. It is taken off, since what all images share would make all
    cosines near 1 (features after a ReLU have no negative ones).
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
        """patches (B, P, D) of a grid in row-major order, features (B, teacher_dim, h, w) of the same images -> scalar.

        Features of another grid are resized to that of the patches.
        """
        h = round(
            (patches.shape[1] * features.shape[2] / features.shape[3]) ** 0.5
        )  # both grids have one aspect ratio
        target = F.interpolate(
            features.float(), (h, patches.shape[1] // h), mode="bilinear", antialias=True
        )
        target = target.flatten(2).transpose(1, 2) - self.mean  # (B, P, teacher_dim)
        return 1 - F.cosine_similarity(self.mlp(patches).float(), target, dim=-1).mean()


def load_teacher(name: str, device: str | torch.device = "cpu") -> Teacher:
    """A frozen teacher by name: "dinov2" (the paper's; ViT-B/14 through torch.hub, which runs code of its authors), or
    weights of a classifier that `minflextok train judge --preset teacher --seed 1` made.

    Raises OSError where DINOv2 cannot be had, ValueError for the network that judges: its verdicts would be worthless.
    """
    if name != "dinov2":
        if name.rstrip("/").split("/")[-1].startswith("judge"):
            raise ValueError(
                f"--repa {name}: never train with the network that judges; "
                "give one that `minflextok train judge --preset teacher` made"
            )
        return Classifier.from_pretrained(name).to(device).requires_grad_(False).maps
    try:
        net = torch.hub.load("facebookresearch/dinov2", "dinov2_vitb14", trust_repo=True)
    except Exception as e:
        raise OSError(
            f"--repa dinov2: it could not be downloaded ({first_line(e)}); "
            "offline, give weights of a trained teacher"
        ) from None
    net = net.to(device).requires_grad_(False).eval()
    mean, std = (
        torch.tensor(v, device=device).view(3, 1, 1)
        for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )

    def features(images: Tensor) -> Tensor:
        x = ((images + 1) / 2 - mean) / std
        x = F.interpolate(x, (224, 224), mode="bicubic", antialias=True)
        return net.get_intermediate_layers(x, 1, reshape=True)[0]  # (B, 768, 16, 16)

    return features
