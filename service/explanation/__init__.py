"""Why a model answers so: asks it again, at low priority."""
