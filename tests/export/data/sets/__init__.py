"""Tests of export/data/sets."""
