"""Tasks of text encoders with one call whose inputs take several rows: entities, pairs, windows, masks."""
