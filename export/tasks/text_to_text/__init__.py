"""The tasks from text to text whose models are loaded and not trained here."""
