"""Encoded images: opened by their header, decoded within a memory bound, turned upright, resized."""
