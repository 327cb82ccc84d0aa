"""How good a prior is, token by token: `minflextok evaluate-prior`. It says first what it measures, and on what.

Samples are held against what the tokenizer itself does at the same length with as many real images. That is a yardstick,
not a bound: a prior writes what is typical, which may be easier to decode and to recognise than what is real. Classes are
told by the judge; captions of `shapes` are checked exactly.
"""

import math
import time
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import combinations

import torch
from scipy.stats import binomtest
from torch import Tensor
from tqdm import tqdm

from ..data import Dataset, Stream, in_order, to_float, to_uint8
from ..data.shapes import check_scene, parse_caption, read_scene
from ..prior import Prior
from ..tokenizer import FlexTok
from .classifier import Judge
from .metrics import bootstrap, mae
from .tokenizer import Scores, encoding, image_noise, sha256


@dataclass(frozen=True)
class Sampler:
    """How ids are drawn: as for `Prior.generate`."""

    guidance: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __str__(self) -> str:
        parts = [f"guidance {self.guidance:g}"] + [f"temperature {self.temperature:g}"] * (
            self.temperature != 1
        )
        return ", ".join(
            parts
            + [
                f"{n.replace('_', '-')} {v:g}"
                for n in ("top_k", "top_p")
                if (v := getattr(self, n))
            ]
        )


def share(hits: list[bool]) -> dict:
    """The share of hits with Wilson's 95% interval, which is right near 0 and 1 too, and their number."""
    low, high = binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
    return {"mean": sum(hits) / len(hits), "ci95": [low, high], "n": len(hits)}


def other_captions(captions: list[str]) -> list[str | None]:
    """For each caption the next one that names as many things, None where there is no other: a negative control."""
    groups: dict[int, list[int]] = {}
    for i, caption in enumerate(captions):
        groups.setdefault(len(parse_caption(caption)[0]), []).append(i)
    after = {
        i: j
        for rows in groups.values()
        for i, j in zip(rows, rows[1:] + rows[:1], strict=True)
        if i != j
    }
    return [captions[after[i]] if i in after else None for i in range(len(captions))]


class CaptionScores:
    """What the checker says of images, by the number of things in their captions and over all."""

    def __init__(self):
        self.rows: list[tuple[int, bool, float, bool | None]] = []

    def update(self, images: Tensor, captions: list[str], others: list[str | None]) -> None:
        """images (B, 3, S, S) uint8, what they should show, and other captions that they should not meet."""
        for image, caption, other in zip(images.numpy(), captions, others, strict=True):
            found, wanted = read_scene(image), len(parse_caption(caption)[0])
            told = check_scene(found, caption)
            self.rows.append(
                (
                    wanted,
                    told.met,
                    1 - len(told.missing) / wanted,
                    None if other is None else check_scene(found, other).met,
                )
            )

    def summary(self) -> dict:
        """met: the share of images that show exactly their caption; things: the mean share of the things asked for that
        are there; shuffled: the share that meets another image's caption."""
        found: dict[str, dict] = {"met": {}, "things": {}, "shuffled": {}}
        for group in ("all", *sorted({row[0] for row in self.rows})):
            rows = [row for row in self.rows if group in ("all", row[0])]
            there, others = (
                torch.tensor([row[2] for row in rows]),
                [row[3] for row in rows if row[3] is not None],
            )
            found["met"][str(group)] = share([row[1] for row in rows])
            found["things"][str(group)] = {
                "mean": there.double().mean().item(),
                "ci95": list(bootstrap(there)),
            }
            if others:
                found["shuffled"][str(group)] = share(others)
        return found


class PriorEvaluation:
    """One evaluation: settings that are checked at once, `line` that tells them, `run` that works them off."""

    def __init__(
        self,
        prior: Prior,
        prior_name: str,
        tok: FlexTok,
        tok_name: str,
        data: Dataset,
        split: str = "test",
        num_samples: int = 1000,
        budgets: list[int] | None = None,
        samplers: list[Sampler] | None = None,
        steps: int = 25,
        decoder_guidance: float = 1.0,
        seed: int = 0,
        judge: str = "judge-cifar10",
        batch_size: int = 64,
        prefix_images: int = 24,
        bf16: bool = False,
    ):
        """A sample for the class or caption of each of the first num_samples images of `data`, by each sampler (default:
        guidance 1 and 3), decoded at each of `budgets`. prefix_images: how many of them lend the prefixes that are
        continued (0: none). judge: for a prior that takes classes. bf16: decode under bfloat16 autocast, about twice as
        fast. Raises ValueError; OSError offline."""
        prior.check_tokenizer(tok)
        c, has = prior.config, None if isinstance(data, Stream) else len(data)
        self.prior, self.tok, self.data, self.num, self.prefix_images = (
            prior,
            tok,
            data,
            num_samples,
            prefix_images,
        )
        self.steps, self.decoder_guidance, self.seed, self.batch_size = (
            steps,
            decoder_guidance,
            seed,
            batch_size,
        )
        self.bf16 = bf16
        self.budgets, self.samplers = budgets or c.budgets, samplers or [Sampler(1.0), Sampler(3.0)]
        for k in self.budgets:
            if not 1 <= k <= c.num_tokens:
                raise ValueError(f"--tokens {k}: {prior_name} gives 1 to {c.num_tokens} tokens")
        if num_samples < 2 or (has is not None and num_samples > has):
            raise ValueError(
                f"--num-samples {num_samples}: give 2 to {has or 'all'} of {data.name}, {split} split"
            )
        if not 0 <= prefix_images <= num_samples:
            raise ValueError(
                f"--prefix-images {prefix_images}: give 0 to {num_samples}, of which there are samples"
            )
        for name, value in (("batch-size", batch_size), ("steps", steps)):
            if value < 1:
                raise ValueError(f"--{name} {value}: give at least 1")
        if not math.isfinite(decoder_guidance):
            raise ValueError(f"--decoder-guidance {decoder_guidance}: give a finite number")
        for s in self.samplers:
            prior._check_sampling(s.guidance, s.temperature, s.top_k, s.top_p, range(1))
        if c.text:
            self._read_captions()
            scored = "each image checked exactly against its caption (minflextok.shapes), and against another's"
        else:
            scored = self._read_classes(judge, prior_name)
        self.protocol = {
            "kind": "text" if c.text else "class",
            "prior": prior_name,
            "prior_sha256": sha256(prior_name, "prior-"),
            "tokenizer": tok_name,
            "tokenizer_sha256": sha256(tok_name),
            "data": data.name,
            "split": split,
            "encoding": encoding(data),
            "samples": num_samples,
            "samplers": [str(s) for s in self.samplers],
            "scored": scored,
            "steps": steps,
            "decoder_guidance": decoder_guidance,
            "precision": "bfloat16 autocast" if bf16 else "float32",
            "seed": seed,
            "device": str(prior.positions.device),
            "torch": torch.__version__,
        }

    def _read_captions(self) -> None:
        captions = getattr(self.data, "captions", None)
        if not captions:
            raise ValueError(
                f"{self.data.name} has no captions, and this prior takes text: give --data shapes"
            )
        self.captions, self.judge = captions[: self.num], None
        self.others = other_captions(self.captions)  # an unreadable caption shows here

    def _read_classes(self, judge: str, prior_name: str) -> str:
        c, size = self.prior.config, self.tok.image_size
        if getattr(self.data, "labels", None) is None and not isinstance(self.data, Stream):
            raise ValueError(
                f"{self.data.name} has no labels, and this prior takes classes: give labelled images"
            )
        self.judge = Judge.from_pretrained(judge).to(self.prior.positions.device)
        j = self.judge.config
        if (j.image_size, j.num_classes) != (size, c.num_classes):
            raise ValueError(
                f"{judge} takes {j.image_size}-pixel images of {j.num_classes} classes, {prior_name} makes "
                f"{size}-pixel images of {c.num_classes}: give --judge that `minflextok train judge` made"
            )
        return (
            f"gFID to the {self.num} originals of those classes in {judge} features (sha256 {sha256(judge)[:12]}, "
            f"{j.num_features}-d), and agreement: the share that the judge gives the class asked for"
        )

    @property
    def line(self) -> str:
        """The protocol in one line."""
        p = self.protocol
        return (
            f"protocol: {p['samples']} samples (1 a {'caption' if p['kind'] == 'text' else 'label'}, rounded to 8 bits) "
            f"of prior {p['prior']}, sha256 {p['prior_sha256'][:12]}, by {' | '.join(p['samplers'])}; tokenizer "
            f"{p['tokenizer']}, sha256 {p['tokenizer_sha256'][:12]}, {p['steps']} Euler steps, guidance "
            f"{p['decoder_guidance']:g}, {p['precision']}; conditions of the first {p['samples']} of {p['data']}, "
            f"{p['split']} split, {p['encoding']}; {p['scored']}; beside reconstructions of the same images; "
            f"seed {p['seed']}; {p['device']}, torch {p['torch']}"
        )

    # ---- the work ------------------------------------------------------------------------------------------------

    def decode(self, ids: Tensor, noise: Tensor) -> Tensor:
        """ids (B, k) -> images (B, 3, H, W) uint8 on the CPU."""
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.bf16):
            return to_uint8(
                self.tok.decode(ids, self.steps, self.decoder_guidance, noise=noise)
            ).cpu()

    def score(
        self, scores: Scores | CaptionScores, images: Tensor, labels: Tensor | None, rows: slice
    ) -> None:
        """Add images (B, 3, H, W) uint8 of these rows of the data to their scores."""
        if self.judge is None:
            return scores.update(images, self.captions[rows], self.others[rows])
        x = to_float(images).to(self.prior.positions.device)
        return scores.update(x, None, labels, self.judge.features(x), self.judge(x))

    @torch.no_grad()
    def run(self, progress: bool = False) -> tuple[dict, dict[int, Tensor], dict[int, Tensor]]:
        """All numbers, as plain values for JSON; and what to show: by budget, the last sampler's samples for the first 12
        conditions, (12, 3, H, W) uint8; by length of prefix, what `prefixes` gives."""
        began, device, K = (
            time.perf_counter(),
            self.prior.positions.device,
            self.prior.config.num_tokens,
        )
        new = CaptionScores if self.judge is None else lambda: Scores(self.num)
        original, lost = new(), torch.zeros(2, K, dtype=torch.float64)
        tokenizer, samples = (
            {k: new() for k in self.budgets},
            [{k: new() for k in self.budgets} for _ in self.samplers],
        )
        draws = [torch.Generator().manual_seed(self.seed) for _ in self.samplers]
        shown: dict[int, list[Tensor]] = {k: [] for k in self.budgets}
        names: list[str] = []
        done, bar = (
            0,
            tqdm(total=self.num, desc="evaluate", unit="image", disable=not progress, leave=False),
        )
        for stored, labels in in_order(self.data, self.batch_size, self.num):
            if self.judge is not None and labels is None:
                raise ValueError(f"{self.data.name} has images without a label: give labelled ones")
            rows = slice(done, done + len(stored))
            asked = self.captions[rows] if self.judge is None else labels
            x = self.tok.to_latents(to_float(stored).to(device))
            ids, conditions = self.tok.encode(x), self.prior.prepare(asked)
            for row, hidden in zip(lost, (False, True), strict=True):
                null = torch.full((len(ids),), hidden, device=device)
                row += self.prior.token_losses(ids, conditions, null).double().sum(0).cpu()
            self.score(original, stored, labels, rows)
            noise, other_noise = (
                image_noise(x.shape, self.seed + i, done).to(device) for i in (0, 1)
            )
            for k, scores in tokenizer.items():
                self.score(scores, self.decode(ids[:, :k], noise), labels, rows)
            for s, g, by_budget in zip(self.samplers, draws, samples, strict=True):
                made = self.prior.generate(asked, max(self.budgets), **asdict(s), generator=g)
                for k, scores in by_budget.items():
                    images = self.decode(made[:, :k], other_noise)
                    self.score(scores, images, labels, rows)
                    if s is self.samplers[-1] and done < 12:
                        shown[k].append(images[: 12 - done])
            first = asked[: max(0, 12 - done)]
            names += first if self.judge is None else [self.prior.class_names[i] for i in first]
            done += len(stored)
            bar.update(len(stored))
        bar.close()
        if done != self.num:
            raise ValueError(
                f"{self.data.name} holds {done} images: give --num-samples {done} or fewer"
            )

        def summary(by_budget: dict) -> dict:
            return {
                str(k): s.summary() | ({"fid": s.distance(original)} if self.judge else {})
                for k, s in by_budget.items()
            }

        bits = (lost / self.num / math.log(2)).tolist()
        found = {
            "protocol": self.protocol | {"line": self.line},
            "bits": {
                "by_position": bits[0],
                "without_condition": bits[1],
                "uniform": math.log2(self.prior.config.vocab_size),
            },
            "originals": original.summary() | ({"fid": self.floor(original)} if self.judge else {}),
            "tokenizer": summary(tokenizer),
            "samplers": [
                asdict(s) | {"name": str(s), "tokens": summary(by_budget)}
                for s, by_budget in zip(self.samplers, samples, strict=True)
            ],
        }
        found["prefixes"], continued = self.prefixes(progress) if self.prefix_images else ({}, {})
        found |= {"shown": names, "seconds": round(time.perf_counter() - began, 2)}
        return found, {k: torch.cat(parts) for k, parts in shown.items()}, continued

    def floor(self, original: Scores) -> dict:
        """The distance of as many other originals, where the data has them: what no sampler can beat but by chance."""
        others, done = Scores(self.num), 0
        for stored, _ in in_order(self.data, self.batch_size, 2 * self.num):
            fresh = stored[max(0, self.num - done) :]
            done += len(stored)
            if len(fresh):
                x = to_float(fresh).to(self.prior.positions.device)
                others.update(x, None, None, self.judge.features(x), None)
        return others.distance(original) if done == 2 * self.num else {}

    # ---- samples that share a prefix ---------------------------------------------------------------------------------

    def contents(self, images: Tensor) -> list[Counter]:
        """What each image (B, 3, H, W) uint8 shows: the judge's class, or the kinds of things that the checker reads."""
        if self.judge is None:
            return [
                Counter((t.colour, t.shape) for t in read_scene(image)) for image in images.numpy()
            ]
        return [
            Counter([i])
            for i in self.judge(to_float(images).to(self.prior.positions.device)).argmax(1).tolist()
        ]

    @torch.no_grad()
    def prefixes(self, progress: bool = False, each: int = 6) -> tuple[dict, dict]:
        """The first j ids of real images, continued `each` times to all K without being told class or caption.

        By j: "alike", how much two continuations of a prefix show the same; "original", how much one shows what the
        image showed; "pixels", the mean absolute difference of two continuations, in 0..2. And of two images, the
        original and its continuations: (2, 1 + each, 3, H, W) uint8.
        """
        n, K, device = self.prefix_images, self.prior.config.num_tokens, self.prior.positions.device
        stored, labels = (
            torch.cat(parts) if parts[0] is not None else None
            for parts in zip(*in_order(self.data, self.batch_size, n), strict=True)
        )
        ids, true = self.tok.encode(to_float(stored).to(device)), self.contents(stored)
        asked = (
            [c for c in self.captions[:n] for _ in range(each)]
            if self.judge is None
            else labels.repeat_interleave(each)
        )
        side, pairs = self.tok.config.image_size, list(combinations(range(each), 2))
        noise = image_noise(
            (n * each, self.tok.config.in_channels, side, side), self.seed + 2, 0
        ).to(device)
        found, shown = {}, {}
        for j in tqdm(
            [0, *self.prior.config.budgets], "prefixes", disable=not progress, leave=False
        ):
            unconditional = asdict(self.samplers[0]) | {"guidance": 0.0}
            made = self.prior.generate(
                asked,
                K,
                **unconditional,
                prefix=ids[:, :j].repeat_interleave(each, 0),
                generator=torch.Generator().manual_seed(self.seed),
            )
            parts = zip(made.split(self.batch_size), noise.split(self.batch_size), strict=True)
            images = torch.cat([self.decode(i, z) for i, z in parts])
            content, images = self.contents(images), images.unflatten(0, (n, each))
            content = [content[i * each : (i + 1) * each] for i in range(n)]
            alike = [sum(overlap(row[a], row[b]) for a, b in pairs) / len(pairs) for row in content]
            same = [
                sum(overlap(one, it) for one in row) / each
                for row, it in zip(content, true, strict=True)
            ]
            pixels = torch.stack(
                [mae(to_float(images[:, a]), to_float(images[:, b])) for a, b in pairs]
            ).mean(0)
            found[str(j)] = {
                name: {"mean": x.double().mean().item(), "ci95": list(bootstrap(x))}
                for name, x in (
                    ("alike", torch.tensor(alike)),
                    ("original", torch.tensor(same)),
                    ("pixels", pixels),
                )
            }
            shown[j] = torch.cat([stored[:2, None], images[:2]], 1)
        return {"images": n, "each": each, "by_length": found}, shown


def overlap(a: Counter, b: Counter) -> float:
    """How much two images show the same: things in both, as a share of things in either; of classes, 0 or 1."""
    return (a & b).total() / (a | b).total() if a or b else 1.0
