"""Tests of the APIs of other servers."""
