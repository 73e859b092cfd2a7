"""Rows to runs: the batch, its session, and the watch that follows the runs."""
