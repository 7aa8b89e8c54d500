"""Tests of `export/networks/`."""
