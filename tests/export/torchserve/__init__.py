"""Tests of export.torchserve."""
