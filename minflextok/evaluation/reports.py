"""What an evaluation of a prior found: a table, and pictures that can be read without colours."""

import textwrap
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure
from torch import Tensor

from ..data import to_float
from .figures import image_grid, save


def cell(value: dict | None, digits: int = 1, scale: float = 100) -> str:
    """Mean and half width of the interval; `scale` 100 for percent."""
    if not value:
        return ""
    half = (
        f" ±{scale * (value['ci95'][1] - value['ci95'][0]) / 2:.{digits}f}"
        if "ci95" in value
        else ""
    )
    return f"{scale * value['mean']:.{digits}f}{half}"


def prior_table(found: dict) -> str:
    """What `PriorEvaluation.run` found, for the eye: means and half widths of the 95% intervals; shares in percent."""
    systems = {"tokenizer alone": found["tokenizer"]} | {
        s["name"]: s["tokens"] for s in found["samplers"]
    }
    lines = []
    if found["protocol"]["kind"] == "class":
        lines.append(f"{'':32}{'tokens':>7}{'FID':>14}{'/ tokenizer':>13}{'agreement %':>14}")
        for name, rows in systems.items():
            for k, row in rows.items():
                ratio = row["fid"]["mean"] / max(found["tokenizer"][k]["fid"]["mean"], 1e-9)
                lines.append(
                    f"{name:32}{k:>7}{cell(row['fid'], 2, 1):>14}{ratio:12.2f}x{cell(row['agreement']):>14}"
                )
        real = found["originals"]
        floor = f"FID of as many other originals {cell(real['fid'], 2, 1)}; " if real["fid"] else ""
        lines.append(f"{floor}the judge on the originals: agreement {cell(real['agreement'])}%")
    else:
        groups = list(found["originals"]["met"])
        lines.append(
            f"{'captions met exactly, %':32}{'tokens':>7}"
            + "".join(
                f"{'all' if g == 'all' else f'{g} thing' + 's' * (g != '1'):>13}" for g in groups
            )
        )
        for name, rows in systems.items():
            for k, row in rows.items():
                lines.append(
                    f"{name:32}{k:>7}" + "".join(f"{cell(row['met'][g]):>13}" for g in groups)
                )
        last = found["samplers"][-1]
        for name, row in (
            (f"other captions, {last['name']}", last["tokens"][k]["shuffled"]),
            ("other captions, real images", found["originals"]["shuffled"]),
            ("their own, real images", found["originals"]["met"]),
        ):
            lines.append(f"{name:32}{'':>7}" + "".join(f"{cell(row.get(g)):>13}" for g in groups))
    bits = found["bits"]
    lines.append(
        f"bits a token of {bits['uniform']:.1f}: {fmean(bits['by_position']):.3f}, without the condition "
        f"{fmean(bits['without_condition']):.3f}; at position "
        + "  ".join(f"{k}: {bits['by_position'][int(k) - 1]:.2f}" for k in found["tokenizer"])
    )
    for j, row in found["prefixes"].get("by_length", {}).items():
        lines.append(
            f"prefix of {j:>3}: continuations show the same to {cell(row['alike'])}%, what the image showed to "
            f"{cell(row['original'])}%; their pixels differ by {cell(row['pixels'], 3, 1)}"
        )
    return "\n".join(lines)


GREYS = ("0.0", "0.4", "0.6", "0.75")  # with a marker each: told apart without colours
MARKERS = ("o", "s", "^", "D")


def plot(found: dict) -> Figure:
    """The curves against the number of tokens, the bits at each position, and what a prefix settles."""
    kind, prefixes = found["protocol"]["kind"], found["prefixes"].get("by_length", {})
    first = ["fid", "agreement"] if kind == "class" else [s["name"] for s in found["samplers"]]
    fig = Figure(figsize=(3.7 * (len(first) + 1 + bool(prefixes)), 3.5), layout="constrained")
    axes = fig.subplots(1, len(first) + 1 + bool(prefixes))
    for ax, what in zip(axes, first, strict=False):
        if kind == "class":
            _plot_classes(ax, found, what)
        else:
            _plot_captions(ax, found, next(s for s in found["samplers"] if s["name"] == what))
        _ticks(ax, found["tokenizer"], "tokens", "log")
    ax, bits = axes[len(first)], found["bits"]
    places = range(1, len(bits["by_position"]) + 1)
    ax.plot(places, bits["by_position"], "k-o", ms=3, label="told the condition")
    ax.plot(places, bits["without_condition"], color="0.5", ls="--", label="not told")
    ax.axhline(bits["uniform"], color="0.7", ls=":", label="nothing learned")
    ax.set(xlabel="position of the id", ylabel="bits", title="held-out bits by position")
    if prefixes:
        ax, lengths = axes[-1], [int(j) for j in prefixes]
        for name, style in (("alike", "k-o"), ("original", "k--s")):
            label = {"alike": "two continuations agree", "original": "one agrees with the image"}[
                name
            ]
            ax.plot(
                lengths, [row[name]["mean"] for row in prefixes.values()], style, ms=3, label=label
            )
        far = prefixes[str(lengths[0])]["pixels"]["mean"]
        ax.plot(
            lengths,
            [row["pixels"]["mean"] / far for row in prefixes.values()],
            color="0.5",
            ls=":",
            marker="^",
            ms=3,
            label=f"pixel distance / {far:.2f}",
        )
        ax.set(ylim=(0, 1.05), title="samples that share a prefix")
        _ticks(ax, prefixes, "ids of an image kept", "symlog", linthresh=1)
    for ax in axes:
        ax.grid(alpha=0.3)
        ax.legend(fontsize=7)
    return fig


def _ticks(ax, at: dict[str, dict], label: str, scale: str, **options) -> None:
    ax.set_xscale(scale, base=2, **options)
    ax.set_xticks([int(k) for k in at], list(at))
    ax.set_xlabel(label)
    ax.minorticks_off()


def _interval(ax, rows: dict[str, dict], style: str, **options) -> None:
    """A line through the means, with the 95% intervals as bars."""
    x, y = [int(k) for k in rows], [v["mean"] for v in rows.values()]
    bars = [
        [v["mean"] - v["ci95"][0] for v in rows.values()],
        [v["ci95"][1] - v["mean"] for v in rows.values()],
    ]
    ax.errorbar(x, y, yerr=bars, fmt=style, ms=4, capsize=2, lw=1.3, **options)


def _plot_classes(ax, found: dict, what: str) -> None:
    _interval(
        ax,
        {k: row[what] for k, row in found["tokenizer"].items()},
        "x--",
        color="0.5",
        label="tokenizer alone",
    )
    for s, grey, marker in zip(found["samplers"], GREYS * 9, MARKERS * 9, strict=False):
        _interval(
            ax,
            {k: row[what] for k, row in s["tokens"].items()},
            "-",
            color=grey,
            marker=marker,
            label=s["name"],
        )
    real = found["originals"][what]
    if real:
        ax.axhline(
            real["mean"],
            color="0.7",
            ls=":",
            label="other originals" if what == "fid" else "the originals",
        )
    ax.set(
        title={"fid": "Fréchet distance (judge)", "agreement": "judged as the class asked for"}[
            what
        ]
    )
    ax.set_ylim(bottom=0)


def _plot_captions(ax, found: dict, sampler: dict) -> None:
    for group, grey, marker in zip(
        [g for g in found["originals"]["met"] if g != "all"], GREYS, MARKERS, strict=True
    ):
        style = {"color": grey, "marker": marker}
        _interval(
            ax,
            {k: row["met"][group] for k, row in sampler["tokens"].items()},
            "-",
            **style,
            label=f"{group} thing{'s' * (group != '1')}",
        )
        rows = {int(k): row["met"][group]["mean"] for k, row in found["tokenizer"].items()}
        ax.plot(rows.keys(), rows.values(), ls="--", lw=1, color=grey)
    for rows, ls, label in (
        (found["tokenizer"], "--", "tokenizer alone"),
        (sampler["tokens"], ":", "another's caption"),
    ):
        ax.plot([], [], ls=ls, color="k", lw=1, label=label)
        if ls == ":":
            ax.plot(
                [int(k) for k in rows],
                [row["shuffled"]["all"]["mean"] for row in rows.values()],
                "k:",
                lw=1,
            )
    ax.set(title=f"captions met exactly, {sampler['name']}", ylim=(-0.02, 1.02))


def sample_grid(samples: dict[int, Tensor], names: list[str], title: str) -> Figure:
    """A row for each class or caption, a column for each number of tokens: samples[k] (n, 3, H, W) uint8."""
    left = 0.4 + 0.06 * min(46, max(map(len, names)))  # inches
    fig = Figure(
        figsize=(left + 0.95 * len(samples), 0.95 * len(names) + 0.5), layout="constrained"
    )
    axes = fig.subplots(len(names), len(samples), squeeze=False)
    for i, (row, name) in enumerate(zip(axes, names, strict=True)):
        for ax, images in zip(row, samples.values(), strict=True):
            ax.imshow(images[i].permute(1, 2, 0), interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        row[0].set_ylabel(textwrap.fill(name, 46), rotation=0, ha="right", va="center", fontsize=7)
    for ax, k in zip(axes[0], samples, strict=True):
        ax.set_title(f"{k} token{'s' * (k > 1)}", fontsize=8)
    fig.suptitle(title, fontsize=9)
    return fig


def write_pictures(
    found: dict, samples: dict[int, Tensor], continued: dict[int, Tensor], out: Path
) -> None:
    """tokens.png, samples.png, and where prefixes were continued prefixes.png, of what `PriorEvaluation.run` gives."""
    save(plot(found), out / "tokens.png")
    save(sample_grid(samples, found["shown"], found["samplers"][-1]["name"]), out / "samples.png")
    if continued:
        each = found["prefixes"]["each"]
        rows = {
            f"{j} id{'s' * (j != 1)} kept": to_float(x.flatten(0, 1)) for j, x in continued.items()
        }
        title = f"first of each {1 + each}: an image; the others continue its first ids, told no class, no text"
        save(image_grid(rows, title), out / "prefixes.png")
