"""The command that plans a training run: plan."""

import argparse

from ..experiments.plan import plan, report
from .flags import say


def show_plan(a: argparse.Namespace) -> None:
    names = ("stage", "images", "batch_size", "optimizer", "gpu", "gpus", "epochs")
    settings = {name: getattr(a, name) for name in (*names, "utilization", "network")}
    say(report(plan(a.preset, **settings)))
