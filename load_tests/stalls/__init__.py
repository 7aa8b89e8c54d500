"""Requests and faults that could stop everybody, attacks on memory, and what a running server makes of them."""
