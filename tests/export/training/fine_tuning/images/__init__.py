"""Tests of training on images."""
