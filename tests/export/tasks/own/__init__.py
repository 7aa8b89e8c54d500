"""Tests of `export/tasks/own/`."""
