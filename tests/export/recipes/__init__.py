"""Tests of export/recipes."""
