"""`check`: right and wrong answers, stubs, broken answers, wrong dtypes."""

import pytest
import torch

from minflextok.course import check, exercises


def test_a_right_answer_passes(capsys):
    assert check("fsq.bound", exercises.find("fsq.bound").solution)
    assert capsys.readouterr().out == "passed: fsq.bound, 8 inputs\n"


def test_a_wrong_answer_is_shown_beside_the_target_with_the_hint(capsys):
    wrong, hint = exercises.find("flow.ends").misconceptions[0]
    assert not check("flow.ends", wrong)
    out = capsys.readouterr().out
    assert out.startswith("not right yet: flow.ends, right for 0 of 4 inputs")
    assert "x_t = (3, 2)" in out and "yours:" in out and "target:" in out
    assert out.endswith(f"Hint: {hint}\n")


def test_an_unknown_error_gets_no_hint(capsys):
    assert not check("flow.pair", lambda x, noise, t: (x + 7, noise))
    assert "Hint" not in capsys.readouterr().out


def test_shapes_that_do_not_broadcast_get_a_hint(capsys):
    assert not check("flow.pair", lambda x, noise, t: (t * noise + (1 - t) * x, noise - x))
    out = capsys.readouterr().out
    assert "RuntimeError" in out and "t[:, None]" in out and out.count("Hint") == 1


def test_one_time_for_all_points_is_asked_for(capsys):
    def euler(velocity, noise, steps):
        for i in range(steps, 0, -1):
            noise = noise - velocity(noise, torch.full((len(noise),), i / steps)) / steps
        return noise

    assert not check("flow.euler", euler)
    assert "give one number" in capsys.readouterr().out


FLOATS = {  # right values, as floating-point numbers
    "fsq.codes_to_ids": lambda f: lambda *args: f(*args).float(),
    "encoder.prefix_mask": lambda f: lambda *args: f(*args).double(),
    "quickstart.shortest": lambda f: lambda *args: f(*args).float(),
    "quickstart.exchange": lambda f: lambda *args: [float(i) for i in f(*args)],
    "budget.tokens_in": lambda f: lambda *args: float(f(*args)),
    "text.shows_exactly": lambda f: lambda *args: float(f(*args)),
    "relatives.raster": lambda f: lambda *args: torch.tensor(float(f(*args))),
}


@pytest.mark.parametrize("name", FLOATS)
def test_floats_in_place_of_integers_and_booleans_are_wrong(name, capsys):
    assert not check(name, FLOATS[name](exercises.find(name).solution))
    out = capsys.readouterr().out
    assert out.startswith("not right yet") and "the dtype is not" in out


def test_a_known_error_with_floats_gets_its_own_hint(capsys):
    wrong, hint = exercises.find("fsq.codes_to_ids").misconceptions[0]
    assert not check("fsq.codes_to_ids", lambda *args: wrong(*args).float())
    assert capsys.readouterr().out.count("Hint") == 1


def test_integers_in_place_of_floats_pass():
    counts = exercises.find("fsq.perplexity").solution
    assert check("fsq.perplexity", lambda *args: torch.tensor(counts(*args), dtype=torch.float64))
    assert check("encoder.prefix_mask", lambda P, K: exercises.encoder.prefix_mask(P, K).int())


def test_an_answer_that_writes_into_its_input_spoils_nothing(capsys):
    assert not check("fsq.bound", lambda z, levels: z.zero_())
    assert "-9." in capsys.readouterr().out  # the input is shown unchanged


def test_unknown_exercise_names_the_known_ones():
    with pytest.raises(ValueError, match="fsq.bound"):
        check("fsq.bond", lambda: None)
