"""Tests of the steps of conversion."""
