"""How soon the pictures follow the controls: python benchmarks/widgets.py [--threads 1]

For each widget at its usual size (6 images, 25 steps): seconds to build it; warm-up, from the first touch until all
neighbouring settings are decoded, how many settings are kept then; and milliseconds from a change to the new picture, for
settings that the warm-up made (median and worst), and for one that it did not. All is processor time, so that what else
the machine does counts little. The class prior is untrained, which costs the same.
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
    scenes, text_prior = FlexTok.from_pretrained("shapes"), Prior.from_pretrained("shapes")
    build = {  # and a setting that the warm-up leaves out; None: it leaves out nothing
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
        *("built s", "warm-up s", "settings", "follows ms", "worst ms", "not warm ms"),
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
        took = [follow(board, setting) for setting in board.neighbors(first)]
        kept, cold = len(board.renderer.cache), f"{follow(board, far):.0f}" if far else "all are"
        times = f"{built:.2f}", f"{warm:.1f}", kept, f"{median(took):.1f}", f"{max(took):.1f}", cold
        print(name, *times, sep=" | ", flush=True)


def follow(board, setting: tuple) -> float:
    """Milliseconds from asking for a setting to its picture; what would be made ahead is left out."""
    board.renderer.near = lambda key: ()
    start = time.process_time()
    board.renderer.request(setting)
    board.renderer.wait()
    return 1000 * (time.process_time() - start)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    main(parser.parse_args().threads)
