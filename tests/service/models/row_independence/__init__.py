"""Tests of the proof that rows are independent."""
