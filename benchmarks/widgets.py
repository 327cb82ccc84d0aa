"""How fast the pictures of the widgets follow their controls.

    python benchmarks/widgets.py [--threads 1]

For each widget at its usual size (6 images, 25 steps):
- seconds to build it;
- seconds of the warm-up, from the first interaction until all neighboring settings are rendered,
  and how many settings are in the cache then;
- milliseconds from a change to the new picture, for settings in the cache (median and maximum) and
  for one that is not.

All are processor time, so that other processes hardly change them. The class prior is untrained,
which takes the same time.
"""

import argparse
import time
from statistics import median

import torch

from minflextok import PRIOR_PRESETS, FlexTok, Prior
from minflextok.course import widgets
from minflextok.data import load_dataset, to_float


def main(threads: int) -> None:
    torch.set_num_threads(threads)
    images = to_float(load_dataset("cifar10-sample", "test").images[:6])
    tok = FlexTok.from_pretrained("cifar10-tiny")
    prior = Prior(PRIOR_PRESETS["cifar10-tiny"]).eval()
    scenes, text_prior = FlexTok.from_pretrained("shapes32"), Prior.from_pretrained("shapes32")
    build = {  # with a setting that is not a neighbor of the first; None: all are neighbors
        "budget_slider": (lambda: widgets.budget_slider(tok, images), None),
        "token_swap": (lambda: widgets.token_swap(tok, images[0], images[1]), (5, 9)),
        "trajectory_scrubber": (lambda: widgets.trajectory_scrubber(tok, images[0]), None),
        "nested_dropout_view": (lambda: widgets.nested_dropout_view(tok, images[0]), None),
        "prior_sampler": (lambda: widgets.prior_sampler(prior, tok), ("7", 9, 0.5)),
        "prompt_explorer": (
            lambda: widgets.prompt_explorer(text_prior, scenes),
            ("a small green square", 5),
        ),
    }
    print(
        f"{threads} thread(s)",
        *("build s", "warm-up s", "cached", "median ms", "max ms", "not cached ms"),
        sep=" | ",
    )
    for name, (make, far) in build.items():
        start = time.process_time()
        board = make()
        built, first = time.process_time() - start, board.setting
        start = time.process_time()
        board.renderer.request(first)
        board.renderer.wait()
        warm = time.process_time() - start
        times = [milliseconds(board, setting) for setting in board.neighbors(first)]
        cached = len(board.renderer.cache)
        cold = f"{milliseconds(board, far):.0f}" if far else "all are"
        print(name, f"{built:.2f}", f"{warm:.1f}", cached, sep=" | ", end=" | ")
        print(f"{median(times):.1f}", f"{max(times):.1f}", cold, sep=" | ", flush=True)


def milliseconds(board: widgets.Board, setting: tuple) -> float:
    """From the request of a setting to its picture, without the neighbors rendered in advance."""
    board.renderer.near = lambda key: ()
    start = time.process_time()
    board.renderer.request(setting)
    board.renderer.wait()
    return 1000 * (time.process_time() - start)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    main(parser.parse_args().threads)
