"""Tests of the tasks that read texts with an encoder."""
