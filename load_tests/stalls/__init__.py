"""Requests, faults and attacks that could block a running server or fill its memory, and their measured effect."""
