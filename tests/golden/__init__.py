"""Logs of every released format, and a reader that knows only the documentation."""
