"""Right answers are stored, loaded again in another process, and checked before they are used."""

import linecache

import torch

from minflextok.course import check, exercises
from minflextok.course.answers import PACKAGE, answer
from minflextok.course.compare import is_right

SOURCE = """
def my_pair(x, noise, t):
    "x, noise (B, 2), t (B,) -> (x_t, velocity)."
    t = rearrange(t, "b -> b 1")
    return t * noise + (1 - t) * x, noise - x
"""


def test_the_packages_functions_solve_the_exercises():
    for name, function in PACKAGE.items():
        assert is_right(exercises.find(name), function), name


def test_a_right_answer_of_a_notebook_is_stored_and_used(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINFLEXTOK_ANSWERS", str(tmp_path / "answers"))
    assert answer("flow.pair").whose == "the package's"
    cell = tmp_path / "cell.py"  # inspect.getsource needs a file
    cell.write_text(SOURCE)
    from einops import rearrange

    names = {"__name__": "__main__", "rearrange": rearrange}
    exec(compile(SOURCE, str(cell), "exec"), names)
    assert check("flow.pair", names["my_pair"])
    part = answer("flow.pair")
    assert part.whose == "yours" and part.function.__name__ == "my_pair"
    x, noise, t = torch.randn(3, 2), torch.randn(3, 2), torch.rand(3)
    assert torch.equal(part.function(x, noise, t)[1], noise - x)

    stored = tmp_path / "answers" / "flow.pair.py"
    for broken in (SOURCE.replace("noise - x", "x - noise"), "def f(:", "raise OSError", "", "1/0"):
        stored.write_text(broken)
        assert answer("flow.pair").whose == "the package's"


def test_answers_that_are_wrong_or_not_of_a_notebook_are_not_stored(tmp_path, monkeypatch):
    monkeypatch.setenv("MINFLEXTOK_ANSWERS", str(tmp_path))
    names = {"__name__": "__main__"}
    exec("def wrong(x, noise, t):\n    return x, noise", names)
    assert not check("flow.pair", names["wrong"])
    assert check("flow.pair", exercises.find("flow.pair").solution)
    assert not list(tmp_path.iterdir())


def test_an_answer_may_call_an_earlier_one_but_no_function_that_is_not_stored(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("MINFLEXTOK_ANSWERS", str(tmp_path / "answers"))
    cell = tmp_path / "cell.py"
    source = """
def my_bound(z, levels):
    L = torch.tensor(levels)
    half, offset = (L - 1) * 1.001 / 2, torch.where(L % 2 == 0, 0.5, 0.0)
    return torch.tanh(z + torch.atanh(offset / half)) * half - offset
def helper(z):
    return z + (z.round() - z).detach()
def my_quantize(z, levels):
    return ROUND(my_bound(z, levels)) / (torch.tensor(levels) // 2)
"""
    for function, whose in (("my_round", "yours"), ("helper", "the package's")):
        text = source.replace("ROUND", function)
        text += "def my_round(z):\n    return z + (z.round() - z).detach()\n"
        cell.write_text(text)
        names = {"__name__": "__main__", "torch": torch}
        exec(compile(text, str(cell), "exec"), names)
        linecache.checkcache(str(cell))
        assert check("fsq.bound", names["my_bound"])
        assert check("fsq.straight_through", names["my_round"])
        assert check("fsq.quantize", names["my_quantize"])
        assert answer("fsq.quantize").whose == whose
        assert ("cannot use this answer" in capsys.readouterr().out) == (whose != "yours")
