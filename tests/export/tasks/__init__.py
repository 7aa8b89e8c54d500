"""Tests of `export/tasks/`."""
