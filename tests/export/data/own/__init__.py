"""Tests of `export/data/own/`."""
