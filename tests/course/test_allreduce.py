"""The measured all-reduce of notebook 13."""

import pytest

from minflextok.course import allreduce


def test_two_processes_take_some_time():
    found = allreduce.measure([10, 1000], repeats=2)
    assert set(found) == {"all-reduce", "exchange"}
    for times in found.values():
        assert list(times) == [10, 1000] and all(0 < t < 60 for t in times.values())


def test_a_failed_process_is_named(monkeypatch):
    monkeypatch.setattr(allreduce, "__name__", "minflextok.course.no_such_module")
    with pytest.raises(RuntimeError, match="no_such_module"):
        allreduce.measure([10])


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="a size"):
        allreduce.measure([0])
