"""Evaluation on recordings, and its report."""
