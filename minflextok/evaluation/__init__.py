"""Evaluation: metrics, the evaluation classifier, reports and figures."""
