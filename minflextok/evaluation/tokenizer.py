"""How good a tokenizer is, token by token: `minflextok evaluate`. It says first what it measures, and on what."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from webdataset.shardlists import expand_urls

from .. import weights
from ..data import (
    IMG_EXTENSIONS,
    Dataset,
    Folder,
    Stream,
    in_order,
    read_all,
    to_float,
    to_uint8,
)
from ..tokenizer import FlexTok
from .classifier import Judge
from .metrics import (
    CodeCounts,
    FeatureStats,
    bootstrap,
    bootstrap_frechet,
    collect,
    frechet_distance,
    inception,
    mae,
    psnr,
    ssim,
)

Features = Callable[[Tensor], Tensor]  # images (B, 3, H, W) in [-1, 1] -> (B, D)


def gfid(
    generated: Iterable[Tensor] | FeatureStats,
    reference: Iterable[Tensor] | FeatureStats,
    features: Features,
) -> float:
    """Frechet distance of generated images to reference ones in the space of `features`.

    Either side: batches (B, 3, H, W) in [-1, 1], or statistics collected before (those of a reference are worth keeping).
    """
    a, b = (
        s if isinstance(s, FeatureStats) else collect(s, features) for s in (generated, reference)
    )
    return frechet_distance(a, b)


def image_noise(shape: tuple[int, ...], seed: int, first: int) -> Tensor:
    """Noise of `shape` (B, C, H, W) for images first, first + 1, ...: each from (seed, its number) alone."""
    return torch.stack(
        [
            torch.randn(shape[1:], generator=torch.Generator().manual_seed(seed * 1_000_003 + i))
            for i in range(first, first + shape[0])
        ]
    )


def encoding(data: Dataset) -> str:
    """How the images were stored, by the name of the first file: what a lossy format lost is lost to every number."""
    known = {"cifar10": "original pixels", "cifar10-sample": "JPEG", "shapes": "drawn here"}
    if data.name in known:
        return known[data.name]
    if Path(data.name).is_dir():
        names = (
            data.files
            if isinstance(data, Folder)
            else (f.name for f in sorted(Path(data.name).rglob("*.*")))
        )
    elif data.name.endswith((".tar", ".tar.gz", ".tgz")):
        names = next(iter(read_all(expand_urls(data.name))))
    else:
        names = ()
    suffixes = (str(n).split(".")[-1].lower() for n in names)
    first = next((s for s in suffixes if "." + s in IMG_EXTENSIONS), "unknown encoding")
    return {"jpg": "JPEG", "jpeg": "JPEG"}.get(first, first.upper() if len(first) < 6 else first)


def sha256(name: str, prefix: str = "") -> str:
    """Of the weights' file: what `sha256sum model.safetensors` says."""
    return hashlib.sha256(
        (weights.find(name, prefix) / "model.safetensors").read_bytes()
    ).hexdigest()


class Scores:
    """What is gathered, batch by batch, on `num` reconstructions from one number of tokens."""

    def __init__(self, num: int, keep_features: bool = True):
        self.num, self.keep_features, self.stats, self.count, self.seconds = (
            num,
            keep_features,
            FeatureStats(),
            0,
            0.0,
        )
        self.values: dict[str, Tensor] = {}  # by name: (num,), an image each; features (num, D)

    def update(
        self,
        images: Tensor,
        originals: Tensor | None,
        labels: Tensor | None,
        features: Tensor,
        logits: Tensor | None,
    ) -> None:
        """A batch: images and what they should be (B, 3, H, W), labels (B,), features (B, D), logits (B, classes)."""
        self.stats.update(features)
        new = {"features": features.float()} if self.keep_features else {}
        if originals is not None:
            new |= {"psnr": psnr(images, originals), "mae": mae(images, originals)}
            if images.shape[-1] >= 11:
                new["ssim"] = ssim(images, originals)
        if logits is not None and labels is not None:
            new["agreement"] = (logits.argmax(1).cpu() == labels).float()
        for name, rows in new.items():
            if (
                name not in self.values
            ):  # whole at once: small tensors kept among large ones that go fragment the heap
                self.values[name] = torch.empty(self.num, *rows.shape[1:])
            self.values[name][self.count : self.count + len(rows)] = rows
        self.count += len(images)

    def summary(self) -> dict:
        """Mean and 95% interval of each per-image value."""
        rows = {name: x[: self.count] for name, x in self.values.items() if name != "features"}
        return {
            name: {"mean": x.double().mean().item(), "ci95": list(bootstrap(x))}
            for name, x in rows.items()
        }

    def distance(self, originals: "Scores") -> dict:
        """Frechet distance to the originals, with its 95% interval where features were kept."""
        found = {"mean": frechet_distance(self.stats, originals.stats)}
        if self.keep_features:
            a, b = (s.values["features"][: s.count] for s in (self, originals))
            found["ci95"] = list(bootstrap_frechet(a, b))
        return found


class Evaluation:
    """One evaluation: settings that are checked at once, `line` that tells them, `run` that works them off."""

    def __init__(
        self,
        tok: FlexTok,
        weights_name: str,
        data: Dataset,
        split: str = "test",
        num_images: int | None = None,
        budgets: list[int] | None = None,
        steps: int = 25,
        guidance: float = 1.0,
        apg: bool = False,
        seed: int = 0,
        features: str = "judge",
        judge: str = "judge-cifar10",
        batch_size: int = 64,
        bf16: bool = False,
    ):
        """num_images: the first so many of `data` (default: all, at most 10,000). features: the space of rFID, "judge"
        or "inception". judge: weights of the Judge, which also tells classes. bf16: decode (not encode) under bfloat16
        autocast, about twice as fast. Raises ValueError, or OSError offline."""
        K, has = tok.config.num_registers, None if isinstance(data, Stream) else len(data)
        self.tok, self.data, self.steps, self.guidance, self.apg, self.seed = (
            tok,
            data,
            steps,
            guidance,
            apg,
            seed,
        )
        self.bf16 = bf16
        self.budgets, self.batch_size = budgets or tok.config.budgets, batch_size
        self.num = min(10_000, has or 10_000) if num_images is None else num_images
        for k in self.budgets:
            if not 1 <= k <= K:
                raise ValueError(f"--tokens {k}: {weights_name} gives 1 to {K} tokens")
        if self.num < 2 or (has is not None and self.num > has):
            raise ValueError(
                f"--num-images {self.num}: give 2 to {has or 'all'} of {data.name}, {split} split"
            )
        if batch_size < 1:
            raise ValueError(f"--batch-size {batch_size}: give at least 1")
        if features not in ("judge", "inception"):
            raise ValueError(f"--features {features}: give 'judge' or 'inception'")
        device, size = tok.encoder.registers.device, tok.image_size
        self.judge = Judge.from_pretrained(judge).to(device)
        if self.judge.config.image_size != size:
            if features == "judge":
                raise ValueError(
                    f"{judge} takes {self.judge.config.image_size}-pixel images, {weights_name} makes {size}: "
                    "give --features inception, or --judge with one that `minflextok train judge` made"
                )
            self.judge = None
        if features == "judge":
            self.features: Features = self.judge.features
            space = (
                f"{judge} features (sha256 {sha256(judge)[:12]}, {self.judge.config.num_features}-d, {size}x{size}, "
                "not resized)"
            )
        else:
            self.features = inception()
            space = (
                "features of torchvision's Inception-v3 (IMAGENET1K_V1, 2048-d, resized to 299x299 bilinear with "
                "antialias; not the TensorFlow network of published FIDs)"
            )
        self.keep_features = (
            features == "judge"
        )  # 10,000 of 128 float32 are 5 MB a budget; Inception's would be 80
        self.protocol = {
            "weights": weights_name,
            "weights_sha256": sha256(weights_name),
            "data": data.name,
            "split": split,
            "encoding": encoding(data),
            "images": self.num,
            "samples_per_image": 1,
            "reference": "the originals",
            "features": space,
            "judge": judge if self.judge else None,
            "steps": steps,
            "guidance": guidance,
            "apg": bool(apg),
            "seed": seed,
            "device": str(device),
            "precision": "bfloat16 autocast"
            if bf16
            else str(tok.encoder.registers.dtype).split(".")[-1],
            "torch": torch.__version__,
        }

    @property
    def line(self) -> str:
        """The protocol in one line."""
        p = self.protocol
        return (
            f"protocol: rFID of {p['images']} reconstructions (1 sample an image, rounded to 8 bits) to their "
            f"{p['images']} originals, in {p['features']}; data: the first {p['images']} of {p['data']}, {p['split']} "
            f"split, {p['encoding']}; weights {p['weights']}, sha256 {p['weights_sha256'][:12]}; {p['steps']} Euler "
            f"steps, guidance {p['guidance']:g}{' (APG)' if p['apg'] else ''}, seed {p['seed']}, noise from (seed, "
            f"image number); {p['precision']}, {p['device']}, torch {p['torch']}"
        )

    @torch.no_grad()
    def run(self, progress: bool = False) -> dict:
        """All numbers, as plain values for JSON. Images pass in batches; what stays are sums and some numbers an image."""
        began, c = time.perf_counter(), self.tok.config
        original, codes = (
            Scores(self.num, self.keep_features),
            CodeCounts(c.num_registers, c.vocab_size),
        )
        scores = {k: Scores(self.num, self.keep_features) for k in self.budgets}
        device, done, pixels = self.tok.encoder.registers.device, 0, hashlib.sha256()
        bar = tqdm(total=self.num, desc="evaluate", unit="image", disable=not progress, leave=False)
        for stored, labels in in_order(self.data, self.batch_size, self.num):
            pixels.update(stored.contiguous().numpy().tobytes())
            images = to_float(stored).to(device)
            x = self.tok.to_latents(images)
            ids, noise = self.tok.encode(x), image_noise(x.shape, self.seed, done).to(device)
            codes.update(ids)
            original.update(
                images,
                None,
                labels,
                self.features(images),
                self.judge(images) if self.judge else None,
            )
            for k, score in scores.items():
                start = time.perf_counter()
                with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                    made = self.tok.decode(
                        ids[:, :k],
                        steps=self.steps,
                        guidance=self.guidance,
                        apg=self.apg,
                        noise=noise,
                    )
                made = to_float(to_uint8(made).cpu()).to(
                    device
                )  # by way of the CPU, so that the clock has seen it all
                score.seconds += time.perf_counter() - start
                score.update(
                    made,
                    images,
                    labels,
                    self.features(made),
                    self.judge(made) if self.judge else None,
                )
            done += len(stored)
            bar.update(len(stored))
        bar.close()
        if done != self.num:
            raise ValueError(
                f"{self.data.name} holds {done} images: give --num-images {done} or fewer"
            )
        used, perplexity = codes.usage()
        return {
            "protocol": self.protocol | {"line": self.line, "pixels_sha256": pixels.hexdigest()},
            "originals": original.summary(),
            "tokens": {
                str(k): {
                    "bits": round(k * c.bits_per_token, 3),
                    "bytes": c.num_bytes(k),
                    "rfid": s.distance(original),
                    **s.summary(),
                    "seconds": round(s.seconds, 2),
                }
                for k, s in scores.items()
            },
            "codes": {
                "vocabulary": c.vocab_size,
                "ids_used": used.tolist(),
                "perplexity": [round(p, 2) for p in perplexity.tolist()],
            },
            "seconds": round(time.perf_counter() - began, 2),
        }


def table(found: dict) -> str:
    """What `Evaluation.run` found, for the eye: means and half widths of the 95% intervals."""
    columns = {
        "rfid": ("rFID", 2),
        "psnr": ("PSNR dB", 2),
        "ssim": ("SSIM", 3),
        "mae": ("MAE", 3),
        "agreement": ("agreement", 3),
    }
    shown = [name for name in columns if any(name in row for row in found["tokens"].values())]

    def cell(value: dict, digits: int) -> str:
        half = (
            f" ±{(value['ci95'][1] - value['ci95'][0]) / 2:.{digits}f}" if "ci95" in value else ""
        )
        return f"{value['mean']:.{digits}f}{half}"

    lines = [
        f"{'tokens':>7}{'bits':>7}{'bytes':>7}"
        + "".join(f"{columns[n][0]:>15}" for n in shown)
        + f"{'seconds':>9}"
    ]
    for k, row in found["tokens"].items():
        cells = "".join(f"{cell(row[n], columns[n][1]):>15}" for n in shown)
        lines.append(f"{k:>7}{row['bits']:7.0f}{row['bytes']:7d}{cells}{row['seconds']:9.1f}")
    if "agreement" in found["originals"]:
        lines.append(
            f"the judge on the originals: agreement {cell(found['originals']['agreement'], 3)}"
        )
    codes = found["codes"]
    lines.append(
        f"ids used per register: {min(codes['ids_used'])} to {max(codes['ids_used'])} of {codes['vocabulary']} "
        f"(perplexity {min(codes['perplexity']):.0f} to {max(codes['perplexity']):.0f})"
    )
    return "\n".join(lines)


def write(found: dict, path: Path) -> None:
    """As JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(found, indent=1) + "\n")
    part.replace(path)
