"""Tests of `export/conversion/model_folder/`."""
