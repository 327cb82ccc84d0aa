"""The course: notebooks with exercises, their checks, widgets and figures."""

from .notebooks import check

__all__ = ["check"]
