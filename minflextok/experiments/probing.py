"""Probes: small classifiers on frozen vectors, which measure what can be read from these.

A probe is fitted on training images. Its regularization is chosen by its loss on validation
images. Test images are only scored.
"""

import copy
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..evaluation.scores import mean_and_interval, share
from ..transformer import layer_norm

# sklearn's C, the inverse of the weight of |w|^2 against the sum of the losses.
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
COMPONENTS = 256  # longer vectors are projected to so many principal components first


class Data(NamedTuple):
    """Vectors x (N, ...) and classes y (N,) int64."""

    x: Tensor
    y: Tensor


class Probed(NamedTuple):
    """A fitted probe and its scores on test images."""

    model: object
    chosen: dict  # what was chosen on validation images
    validation: float  # accuracy there
    correct: Tensor  # (N,) bool, test images
    losses: Tensor  # (N,), -log2 of the probability of the true class

    def results(self) -> dict:
        """Accuracy with its Wilson interval; the mean loss in bits, with a bootstrap interval."""
        return {
            "accuracy": share(self.correct.tolist()),
            "loss bits": mean_and_interval(self.losses),
            "validation": self.validation,
            **self.chosen,
        }


def sklearn():
    """scikit-learn, which is an optional dependency."""
    try:
        import sklearn.decomposition
        import sklearn.exceptions
        import sklearn.linear_model
        import sklearn.pipeline
        import sklearn.preprocessing
    except ImportError:
        raise ImportError("probes need scikit-learn: pip install 'minflextok[probes]'") from None
    return sklearn


def standardizer(train: np.ndarray, components: int = COMPONENTS):
    """Fitted to train (N, d): standardization; where d is larger, then the first principal
    components."""
    sk = sklearn()
    steps = [sk.preprocessing.StandardScaler()]
    if min(train.shape) > components:
        pca = sk.decomposition.PCA(
            components, svd_solver="randomized", iterated_power=2, random_state=0
        )
        steps.append(pca)
    return sk.pipeline.make_pipeline(*steps).fit(train)


def flat(x: Tensor) -> np.ndarray:
    """(N, ...) -> (N, d), as scikit-learn takes it."""
    return x.flatten(1).float().numpy()


# ---- linear --------------------------------------------------------------------------------------


def linear_probe(
    train: Data, val: Data, test: Data, strengths: tuple[float, ...] = STRENGTHS, scaler=None
) -> Probed:
    """Logistic regression on standardized vectors, flattened. scaler: the `standardizer` of the
    training vectors, where it is there already."""
    scaler = scaler or standardizer(flat(train.x))
    x, x_val, x_test = (scaler.transform(flat(d.x)) for d in (train, val, test))
    classes = num_classes(train, val, test)

    def logits(model, vectors: np.ndarray) -> Tensor:
        """Log-probabilities (N, classes); log 1e-30 of a class without a training image."""
        p = torch.zeros(len(vectors), classes)
        p[:, model.classes_] = torch.from_numpy(model.predict_proba(vectors)).float()
        return p.clamp(min=1e-30).log()

    best, best_loss, accuracy = None, math.inf, 0.0
    for C in strengths:
        model = sklearn().linear_model.LogisticRegression(C=C, max_iter=300, tol=1e-3)
        with warnings.catch_warnings():  # a fit that stops early is the more regularized
            warnings.simplefilter("ignore", sklearn().exceptions.ConvergenceWarning)
            model.fit(x, train.y.numpy())
        correct, losses = scores(logits(model, x_val), val.y)
        if losses.mean() < best_loss:
            best, best_loss = model, losses.mean().item()
            accuracy = correct.double().mean().item()
    fitted = sklearn().pipeline.make_pipeline(scaler, best)
    return Probed(fitted, {"C": best.C}, accuracy, *scores(logits(best, x_test), test.y))


def num_classes(*data: Data) -> int:
    return 1 + max(int(d.y.max()) for d in data)


def scores(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each image is classified correctly (N,) bool, and its loss in bits (N,)."""
    losses = F.cross_entropy(logits, y, reduction="none") / math.log(2)
    return logits.argmax(1) == y, losses


# ---- attentive -----------------------------------------------------------------------------------


class AttentiveProbe(nn.Module):
    """A learned query for each head attends to k vectors (B, k, F); a linear layer maps the
    averages of all heads to logits.

    Each vector is projected, gets a learned embedding of its index, and passes a GELU, so that a
    value may mean something else at each index. With fixed queries, the projections to keys and
    values of usual attention would add nothing: the queries and the last layer contain them.
    """

    def __init__(self, k: int, channels: int, num_classes: int, width: int = 64, heads: int = 4):
        super().__init__()
        self.embed = nn.Linear(channels, width)
        self.positions = nn.Parameter(torch.randn(k, width))
        self.queries = nn.Parameter(torch.randn(heads, width))
        self.head = nn.Linear(heads * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        seq = F.gelu(self.embed(x) + self.positions)  # (B, k, width)
        weights = (seq @ self.queries.T * self.queries.shape[1] ** -0.5).softmax(1)  # (B, k, heads)
        pooled = weights.transpose(1, 2) @ seq  # (B, heads, width)
        return self.head(layer_norm(pooled).flatten(1))


def attentive_probe(
    train: Data,
    val: Data,
    test: Data,
    epochs: int = 15,
    weight_decay: float = 0.1,
    batch_size: int = 256,
    seed: int = 0,
) -> Probed:
    """An `AttentiveProbe` on vectors (N, k, F), standardized for each index and channel. The epoch
    is chosen on validation images."""
    mean, std = train.x.mean(0), train.x.std(0).clamp(min=1e-6)
    x, x_val, x_test = ((d.x - mean) / std for d in (train, val, test))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AttentiveProbe(x.shape[1], x.shape[2], num_classes(train, val, test))
        best_loss, chosen, accuracy, state = math.inf, 0, 0.0, model.state_dict()
        for epoch in train_epochs(model, x, train.y, epochs, weight_decay, batch_size):
            correct, losses = scores(logits_of(model, x_val), val.y)
            if losses.mean() < best_loss:
                best_loss, chosen = losses.mean().item(), epoch + 1
                accuracy = correct.double().mean().item()
                state = copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    return Probed(model, {"epochs": chosen}, accuracy, *scores(logits_of(model, x_test), test.y))


def train_epochs(
    model: nn.Module, x: Tensor, y: Tensor, epochs: int, weight_decay: float, batch_size: int
):
    """Train for one epoch at each step of the iteration; the learning rate falls to 0."""
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=weight_decay)
    steps = epochs * math.ceil(len(x) / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        for i in torch.randperm(len(x)).split(batch_size):
            loss = F.cross_entropy(model(x[i]), y[i])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        yield epoch


@torch.no_grad()
def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([model(part) for part in x.split(1000)])


Probe = Callable[[Data, Data, Data], Probed]
PROBES: dict[str, Probe] = {"linear": linear_probe, "attentive": attentive_probe}
