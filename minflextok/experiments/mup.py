"""Does muP hold? The coordinate check, and the transfer of the learning rate between widths.

    python -m minflextok.experiments.mup [--out data/mup]

Coordinate check (Yang et al., arXiv 2203.03466, appendix D): mean absolute activations of small
tokenizers and priors of several widths, at initialization and after each of the first steps. Under
muP they depend on the step, not on the width; in the standard parametrization they grow with the
width. Transfer: the validation loss of short runs of small tokenizers against the learning rate, at
several widths. The first of the widths is the base width, where both parametrizations are the same.
Writes coordinates.json, transfer.json and a picture of each. What is in a file that is there is
drawn again, not measured again.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import TypeAlias

import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import LogLocator
from torch import Tensor, nn

from ..config import PriorConfig, TrainConfig
from ..data import load_dataset, to_float
from ..data.shapes import make_shapes
from ..evaluation.figures import save
from ..evaluation.reports import write_results
from ..presets import PRESETS
from ..prior import Prior
from ..tokenizer import FlexTok
from ..training.loop import training_step
from ..training.mup import initialize
from ..training.objective import TokenizerObjective
from ..training.run import Run
from ..training.runtime import Ranks

IMAGES = 1024  # the first half trains, the second validates
LAYERS = {  # what is drawn
    "tokenizer": ["encoder.blocks.1", "encoder.head", "decoder.blocks.1", "decoder.head"],
    "prior": ["blocks.1", "logits"],
}
NAMES = {"encoder.head": "registers before FSQ", "decoder.head": "velocity"}
PARAMETRIZATIONS = ["standard", "muP"]
RECIPE = TrainConfig(batch_size=16, warmup=0, min_lr=1.0, bf16=False)


class Tokenizer:
    """Tokenizers of any width and depth 2, on procedural scenes."""

    rate = 4e-3  # of the preset `shapes`

    def __init__(self):
        self.x = to_float(torch.from_numpy(make_shapes(IMAGES)[0]))
        self.config = replace(PRESETS["shapes"], enc_depth=2, dec_depth=2, head_dim=32)

    def model(self, width: int) -> TokenizerObjective:
        return TokenizerObjective(FlexTok(replace(self.config, enc_dim=width, dec_dim=width)))

    def batch(self, model: nn.Module, rows: Tensor, g: torch.Generator) -> tuple[Tensor, ...]:
        return self.x[rows], *model.draw(self.x[rows], 1.0, g)


class GPT:
    """Priors of any width and depth 2, on the ids of the shipped tokenizer cifar10-tiny."""

    rate = 2e-3  # of the preset `cifar10-tiny`

    def __init__(self):
        data = load_dataset("cifar10-sample", "train", 32)
        tok = FlexTok.from_pretrained("cifar10-tiny")
        self.ids, self.labels = tok.encode(to_float(data.images[:IMAGES])), data.labels[:IMAGES]
        c = tok.config
        self.config = PriorConfig(c.vocab_size, c.num_registers, 10, depth=2, head_dim=32)

    def model(self, width: int) -> Prior:
        return Prior(replace(self.config, dim=width))

    def batch(self, model: nn.Module, rows: Tensor, g: torch.Generator) -> tuple[Tensor, ...]:
        return self.ids[rows], self.labels[rows], *model.draw(len(rows), g)


Setup: TypeAlias = Tokenizer | GPT


@torch.no_grad()
def activations(model: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, float]:
    """Mean absolute outputs of the blocks and the heads for a batch, by name."""
    found = {}

    def hook(name: str) -> Callable:
        def note(module, arguments, output):
            found[name] = output.abs().mean().item()

        return note

    net = model.tok if isinstance(model, TokenizerObjective) else model
    if isinstance(net, FlexTok):
        net.savings = False  # they call parts of the blocks, where no hook reads the activations
    handles = [
        module.register_forward_hook(hook(name))
        for name, module in net.named_modules()
        if name.split(".")[-2:-1] == ["blocks"] or name.endswith("coder.head")
    ]
    model(*batch)
    for handle in handles:
        handle.remove()
    if isinstance(net, FlexTok):
        net.savings = True
    else:
        found["logits"] = net.logits(batch[0][:, :-1], batch[1]).abs().mean().item()
    return found


def train(setup: Setup, width: int, recipe: TrainConfig, watch: Callable) -> nn.Module:
    """Train a model for recipe.steps, and call watch(model) before the first and after each
    step."""
    torch.manual_seed(recipe.seed)
    model = initialize(setup.model(width), recipe.mup_base_width)
    run = Run(model, recipe, Ranks("cpu"))
    watch(model)
    while run.progress < 1:
        g = run.generator()
        rows = torch.randint(IMAGES // 2, (recipe.batch_size,), generator=g)
        run.set_learning_rates(run.progress)
        training_step(model, run.optimizers, setup.batch(model, rows, g), recipe, nullcontext)
        run.step += 1
        watch(model)
    return model


def validation(setup: Setup, model: nn.Module, images: int) -> tuple[Tensor, ...]:
    """The first validation images, with the same draws each time."""
    rows = torch.arange(IMAGES // 2, IMAGES // 2 + images)
    return setup.batch(model, rows, torch.Generator().manual_seed(0))


def cells(widths: list[int]) -> Iterator[tuple[str, int, int]]:
    """Parametrization, width and mup_base_width of all runs."""
    for name in PARAMETRIZATIONS:
        for width in widths:
            yield name, width, widths[0] if name == "muP" else 0


def coordinates(setup: Setup, widths: list[int], steps: int = 8, seeds: int = 2) -> dict:
    """{parametrization: {width: {layer: mean absolute activation at step 0, 1, ..., steps}}},
    averaged over seeds."""
    found: dict = {name: {} for name in PARAMETRIZATIONS}
    for name, width, base in cells(widths):
        logs: list[list[dict[str, float]]] = [[] for _ in range(seeds)]
        for seed, log in enumerate(logs):
            recipe = replace(RECIPE, steps=steps, lr=setup.rate, mup_base_width=base, seed=seed)

            def watch(model, log=log):
                log.append(activations(model, validation(setup, model, 32)))

            train(setup, width, recipe, watch)
        found[name][width] = {
            layer: [float(f"{mean(log[t][layer] for log in logs):.4g}") for t in range(steps + 1)]
            for layer in logs[0][0]
        }
    return found


def transfer(setup: Setup, widths: list[int], steps: int) -> dict:
    """{parametrization: {width: {learning rate: validation loss after so many steps}}}."""
    found: dict = {name: {} for name in PARAMETRIZATIONS}
    for name, width, base in cells(widths):
        losses = found[name][width] = {}
        for rate in [setup.rate * 2.0**i for i in range(-2, 6)]:
            recipe = replace(RECIPE, steps=steps, lr=rate, mup_base_width=base)
            recipe = replace(recipe, warmup=steps // 10, min_lr=0.02)
            model = train(setup, width, recipe, lambda model: None)
            with torch.no_grad():
                losses[rate] = round(model(*validation(setup, model, IMAGES // 2)).item(), 4)
    return found


def draw_coordinates(results: dict) -> plt.Figure:
    """A row for each parametrization, a column for each layer, a line for each step."""
    columns = [(model, layer) for model, layers in LAYERS.items() for layer in layers]
    size = (2.6 * len(columns), 5.4)
    fig, axes = plt.subplots(2, len(columns), figsize=size, sharey="col", layout="constrained")
    for row, name in zip(axes, PARAMETRIZATIONS, strict=True):
        for ax, (model, layer) in zip(row, columns, strict=True):
            by_width = results[model][name]
            steps = len(by_width[min(by_width)][layer])
            for t in range(steps):
                values = [by_width[width][layer][t] for width in by_width]
                color = plt.cm.viridis(t / (steps - 1))
                ax.loglog(list(map(int, by_width)), values, "o-", ms=3, color=color, label=str(t))
            ax.set_title(f"{name}, {model}:\n{NAMES.get(layer, layer)}", fontsize=9)
            ax.set_xticks(list(map(int, by_width)), list(by_width), minor=False)
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.minorticks_off()
    axes[0, 0].legend(title="step", fontsize=6, ncols=2)
    fig.supxlabel("width")
    fig.supylabel("mean absolute activation")
    return fig


def draw_transfer(results: dict) -> plt.Figure:
    """Validation loss against the learning rate, a line for each width; a cross at its minimum."""
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for ax, name in zip(axes, PARAMETRIZATIONS, strict=True):
        for width, losses in results["tokenizer"][name].items():
            rates, values = list(map(float, losses)), list(losses.values())
            (line,) = ax.semilogx(rates, values, "o-", ms=3, label=f"width {width}", base=2)
            best = values.index(min(values))
            ax.plot(rates[best], values[best], "x", ms=10, color=line.get_color())
        ax.set(title=name, xlabel="learning rate", ylabel="validation loss")
        ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
        ax.legend()
    return fig


def measured(path: Path, measure: Callable[[], dict]) -> dict:
    """The results in a file, which are measured if there is none."""
    if not path.exists():
        start = time.process_time()
        results = measure()
        results["setting"] = {
            "machine": f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)",
            "torch": torch.__version__,
            "core minutes": round((time.process_time() - start) / 60, 1),
        }
        write_results(results, path)
    return json.loads(path.read_text(encoding="utf-8"))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="data/mup")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--transfer-widths", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--steps", type=int, default=80, help="of each run of the transfer")
    a = parser.parse_args(argv)
    out = Path(a.out)
    out.mkdir(parents=True, exist_ok=True)

    def check() -> dict:
        setups: dict[str, Setup] = {"tokenizer": Tokenizer(), "prior": GPT()}
        return {name: coordinates(setup, a.widths) for name, setup in setups.items()}

    def sweep() -> dict:
        return {"tokenizer": transfer(Tokenizer(), a.transfer_widths, a.steps)}

    save(draw_coordinates(measured(out / "coordinates.json", check)), out / "coordinates.png")
    save(draw_transfer(measured(out / "transfer.json", sweep)), out / "transfer.png")


if __name__ == "__main__":
    main()
