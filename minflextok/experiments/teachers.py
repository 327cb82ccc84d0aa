"""Which teacher REPA needs: one trained with labels, one without, or any network at all.

    python -m minflextok.experiments.teachers --data cifar10-train.tar.gz [--minutes 10]

The shipped teacher and the evaluation classifier were trained on the same labels, so the gain of
REPA may be biased. Here the base row of the sweep at equal minutes is trained with each teacher,
and scored in two spaces: features of the evaluation classifier, and of a network trained on
ImageNet, which has seen neither CIFAR-10's labels nor its images (pip install
"minflextok[imagenet]").

The teacher without labels predicts by how many quarter turns an image is rotated (Gidaris et al.,
arXiv 1803.07728), with the network and the recipe of `teacher-cifar10`.

Results are kept in teachers.json and teachers.md; a stopped command resumes, and several may
measure different rows at once.
"""

import argparse
import dataclasses
from pathlib import Path

import torch

from ..data import Dataset, Images, load_dataset, validation_split
from ..evaluation.classifier import Classifier, accuracy
from ..evaluation.fid import imagenet_network
from ..precision import precision
from ..presets import CLASSIFIERS, PRESETS
from ..tokenizer import FlexTok
from ..training.classifier import train_classifier
from ..weights import find, write_atomic
from .equal_time import images_seen, log_lines
from .sweep import measure, score, slug, store_row, stored_rows
from .sweep_rows import AT_EQUAL_MINUTES, Setting, row_of
from .sweep_tables import conditions, line, minutes_rows, rfids

BASE_ROW = next(iter(AT_EQUAL_MINUTES))
AGAIN = ", another seed"  # of the tokenizer, and so of the images that are scored
LABELS = "teacher-cifar10"
TEACHERS = {  # what the table says of each
    "none": "no REPA",
    f"none{AGAIN}": "",
    "labels": f"`{LABELS}`, trained to predict CIFAR-10's labels",
    f"labels{AGAIN}": "",
    "rotations": "trained without labels, to predict the rotation of an image",
    "untrained": "the same network, randomly initialized; batch norms with mean 0, variance 1",
    "labels, longer": "trained to predict the labels, for twice as many steps as `rotations`",
}
OPTIONAL = ("labels, longer",)  # because of its time


def rotated(data: Dataset) -> Images:
    """Each image of a data set by 0, 1, 2 and 3 quarter turns counterclockwise, which are its
    labels."""
    images = data.at(torch.arange(len(data)))  # (N, 3, S, S)
    return Images(
        f"{data.name}, rotated",
        torch.cat([torch.rot90(images, turns, (2, 3)) for turns in range(4)]),  # (4 N, 3, S, S)
        torch.arange(4).repeat_interleave(len(images)),
        ["0°", "90°", "180°", "270°"],
        split=data.split,
        encoding=data.encoding,
    )


def train_teacher(name: str, steps: int, train: Dataset, validation: Dataset, out: Path) -> dict:
    """Train the teacher "rotations" or "labels, longer"; returns what the table says of it."""
    preset = CLASSIFIERS["teacher"]
    model, recipe = preset.model, dataclasses.replace(preset.recipe, steps=steps, seed=1)
    if name == "rotations":
        train, validation = rotated(train), rotated(validation)
        model = dataclasses.replace(model, num_classes=4)
        # A mirrored image that was turned to the left is turned to the right.
        recipe = dataclasses.replace(recipe, flip=False)
    else:
        recipe = dataclasses.replace(recipe, steps=2 * steps)
    net = train_classifier(model, recipe, train, out, "cpu", quiet=True)
    size = len(validation_split(len(train), recipe, train.name)[0])
    return {"set": size, "seen": images_seen(out), "accuracy": accuracy(net, validation)}


def teacher_of(
    name: str, steps: int, train: Dataset, validation: Dataset, out: Path
) -> tuple[str | None, dict]:
    """The weights of a teacher, made in `out` if none are shipped, and what the table says of
    it."""
    if name == "none":
        return None, {}
    if name == "labels":
        log = find(LABELS)
        last = [x["accuracy"] for x in log_lines(log) if "accuracy" in x][-1]
        return LABELS, {"set": 49_000, "seen": images_seen(log), "accuracy": last}
    if name == "untrained":
        torch.manual_seed(0)
        Classifier(CLASSIFIERS["teacher"].model).save_pretrained(out)
        return str(out), {}
    return str(out), train_teacher(name, steps, train, validation, out)


def compare(setting: Setting, steps: int, data: Dataset, out: Path, names: list[str]) -> None:
    """Measure the teachers that `out` has no results of. steps: of a teacher's training."""
    file, runs = out / "teachers.json", out / "runs/teachers"
    here = dataclasses.asdict(setting) | {"teacher_steps": steps}
    for name in names:
        if name in stored_rows(file, runs, here):
            continue
        teacher, again, _ = name.partition(AGAIN)
        base = f"base{AGAIN}" if again else BASE_ROW
        parts = validation_split(len(data), row_of(base, setting)[1], data.name)
        train, validation = map(data.select, parts)
        folder, made = runs / slug(name), runs / f"weights/{slug(teacher)}"
        weights, facts = teacher_of(teacher, steps, train, validation, made)
        row = measure(base, dataclasses.replace(setting, teacher=weights), data, folder)
        tok = FlexTok.from_pretrained(folder)
        for guidance in (1.0, 2.0):
            row[f"imagenet, guidance {guidance:g}"] = score(
                tok, str(folder), validation, guidance, "imagenet"
            )
        rows = store_row(name, row | {"teacher": facts}, file, runs, here, TEACHERS)
        write_atomic(file.with_suffix(".md"), table(setting, rows))
        print(name, rows[name], flush=True)


def table(setting: Setting, rows: dict[str, dict]) -> str:
    """Markdown: the teachers, and the rows in each space of features."""
    head = (
        f"Preset `{setting.preset}`, {setting.minutes:g} processor minutes of the base row of "
        "sweep_minutes.md (a teacher's own training is not counted), each with another teacher, "
        f"with one seed if no other is named. {conditions(setting)} rFID and classification "
        "accuracy: 8 Euler steps."
    )
    notes = (
        f"Teachers have the network and, but for the steps, the recipe of the preset `teacher`; "
        f"`rotations` does not mirror images. `{LABELS}` is shipped: its training images include "
        "most of those that are scored here, and its accuracy is that on its own validation split, "
        "another part of the train split. The others are trained without the images that are "
        "scored, and their accuracy is that on those images. Each of the four rotations of an "
        "image counts as an image."
    )
    columns = ("teacher", "what it is", "training images", "seen in training", "accuracy")
    teachers = [line(*columns), "|---" * len(columns) + "|"]
    judged = [line("teacher", "rFID at 1 / 4 / 8 / K", "with guidance 2"), "|---" * 3 + "|"]
    for name, row in rows.items():
        judged.append(line(name, *(rfids(row[f"imagenet, guidance {g}"]) for g in (1, 2))))
        if AGAIN in name:
            continue
        shown = {"set": "{:,}", "seen": "{:,}", "accuracy": "{:.1%}"}
        facts = [f.format(row["teacher"][k]) if row["teacher"] else "" for k, f in shown.items()]
        teachers.append(line(name, TEACHERS[name], *facts))
    parts = ["# Teachers for REPA", head, "\n".join(teachers), notes]
    parts += ["## Features of the evaluation classifier", "\n".join(minutes_rows(rows, "teacher"))]
    parts += ["## Features of a network trained on ImageNet", "\n".join(judged)]
    return "\n\n".join(parts) + "\n"


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", default="cifar10", help="its train split is used (default cifar10)")
    p.add_argument("--minutes", type=float, default=10, help="processor minutes a row (default 10)")
    p.add_argument(
        "--teacher-steps",
        type=int,
        default=5000,
        help=f"training steps of a teacher (default 5000, as {LABELS})",
    )
    p.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        choices=list(TEACHERS),
        default=[name for name in TEACHERS if name not in OPTIONAL],
        help=f"{', '.join(map(repr, TEACHERS))} (default: all but {OPTIONAL[0]!r})",
    )
    p.add_argument("--out", default="benchmarks", help="directory of results (default benchmarks)")
    a = p.parse_args(argv)
    torch.set_num_threads(1)
    imagenet_network()  # an error now, and not after a training
    data = load_dataset(a.data, "train", PRESETS["cifar10-tiny"].image_size)
    name = f"{Path(a.data).name} ({data.encoding})"
    setting = Setting("cifar10-tiny", name, None, a.minutes, val_images=1000)
    used = precision("cpu", row_of(BASE_ROW, setting)[1].bf16)
    setting = dataclasses.replace(setting, precision=used)
    compare(setting, a.teacher_steps, data, Path(a.out), a.only)


if __name__ == "__main__":
    main()
