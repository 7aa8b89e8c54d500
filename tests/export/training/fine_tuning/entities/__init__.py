"""Tests of training on entities."""
