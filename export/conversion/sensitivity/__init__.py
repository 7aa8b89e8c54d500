"""How far int8 answers move with their company."""
