"""Tables and a figure of a sweep."""

from collections.abc import Callable

from matplotlib.figure import Figure

from .sweep_rows import BASE, BEFORE, BUDGETS, Setting


def table(setting: Setting, rows: dict[str, dict]) -> str:
    """Markdown: a row for each change."""
    if setting.sizes:
        title, cost = "# Size against budget", "minutes of one core as each row says"
        cost += f"; batches of {', '.join(str(b) for _, b in BUDGETS)} images"
    elif setting.steps:
        title = "# Why the recipe is as it is"
        cost = f"{setting.steps} steps. Base: {BEFORE}"
    else:
        title = "# The recipe at a fixed budget of processor time"
        cost = f"{setting.minutes:g} processor minutes. Base: {BASE}"
    head = (
        f"Preset `{setting.preset}`, {cost}; each row is one change, with one seed. "
        f"{conditions(setting)}"
    )
    if setting.train_on:
        head += (
            f" Trained on {setting.train_on}, with as many images as one core of that processor "
            f"sees in the minutes ({setting.speeds})."
        )
    if setting.steps:
        return "\n".join([title, "", head, "", *_steps_rows(rows)]) + "\n"
    head += (
        f" rFID and classification accuracy: 8 Euler steps. Teacher: {setting.teacher or 'none'}."
    )
    return "\n".join([title, "", head, "", *minutes_rows(rows)]) + "\n"


def conditions(setting: Setting) -> str:
    """On which images and on what machine the rows are measured."""
    return (
        "One-step PSNR (dB) from k tokens and ids used per register on "
        f"{setting.val_images} validation images of the train split of {setting.data}; "
        f"{setting.machine}, one thread, {setting.precision}, torch {setting.torch}."
    )


def _psnr(row: dict) -> list[str]:
    largest, value = list(row["psnr"].items())[-1]
    return [*(f"{row['psnr'][k]:.2f}" for k in ("1", "4")), f"{value:.2f} ({largest})"]


def line(*cells: object) -> str:
    """A row of a table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def rfids(scores: dict[str, dict]) -> str:
    """The rFID of each token budget."""
    return " / ".join(f"{x['rfid']:.1f}" for x in scores.values())


def _steps_rows(rows: dict[str, dict]) -> list[str]:
    lines = [line("change", "k = 1", 4, "K", "ids used", "minutes"), "|---" * 6 + "|"]
    for name, row in rows.items():
        lines.append(line(name, *_psnr(row), row["ids"], f"{row['seconds'] / 60:.1f}"))
    return lines


def minutes_rows(rows: dict[str, dict], first: str = "change") -> list[str]:
    """A table of rows of equal minutes, as lines; `first` heads the names."""
    names = [first, "images seen", "loss", "PSNR at k = 1", 4, "K", "ids used"]
    names += ["rFID at 1 / 4 / 8 / K", "with guidance 2", "accuracy with guidance 2"]
    lines = [line(*names), "|---" * len(names) + "|"]
    for name, row in rows.items():
        lines.append(
            line(
                name,
                f"{row['images']:,}",
                f"{row['loss']:.3f}",
                *_psnr(row),
                row["ids"],
                rfids(row["guidance 1"]),
                rfids(row["guidance 2"]),
                " / ".join(f"{x['accuracy']:.0%}" for x in row["guidance 2"].values()),
            )
        )
    return lines


def plot_sizes(rows: dict[str, dict]) -> Figure:
    """rFID from 1 and from all tokens (guidance 2), and one-step PSNR from all, against the budget:
    a line for each size."""
    panels: dict[str, Callable[[dict], float]] = {
        "rFID, 1 token": lambda row: row["guidance 2"]["1"]["rfid"],
        "rFID, all tokens": lambda row: list(row["guidance 2"].values())[-1]["rfid"],
        "one-step PSNR (dB), all tokens": lambda row: list(row["psnr"].values())[-1],
    }
    styles = (("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("black", "^", ":"))
    sizes = dict.fromkeys(name.rsplit(", ", 1)[0] for name in rows)
    fig = Figure(figsize=(11, 3.8), layout="constrained")
    axes = fig.subplots(1, len(panels))
    for ax, (label, value) in zip(axes, panels.items(), strict=True):
        for size, (color, marker, line) in zip(sizes, styles, strict=False):
            found = {m: rows[name] for m, _ in BUDGETS if (name := f"{size}, {m} minutes") in rows}
            hours, values = [m / 60 for m in found], [value(row) for row in found.values()]
            ax.plot(hours, values, color=color, marker=marker, ls=line, label=size)
        ax.set_xscale("log", base=2)
        ax.set(xlabel="hours of one core", ylabel=label)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize=9)
    return fig
