"""Tasks from text to text besides translation, and the explanation of their answers."""
