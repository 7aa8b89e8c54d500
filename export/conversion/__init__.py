"""Steps of conversion that judge or describe a finished graph."""
