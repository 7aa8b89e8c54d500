"""Tests of the tasks of text encoders whose inputs take several rows."""
