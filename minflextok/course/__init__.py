"""The course: notebooks, their exercises and `check`, widgets and figures."""

from .check import check

__all__ = ["check"]
