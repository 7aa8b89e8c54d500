"""Reports on models, and measurements of their explanations."""
