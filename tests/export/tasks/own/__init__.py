"""Tests of training and conversion on data of one's own."""
