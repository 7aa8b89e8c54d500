"""Tests of loading, proving and keeping models."""
