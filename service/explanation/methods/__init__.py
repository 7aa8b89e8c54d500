"""Why a model answers as it does, by taking parts of its input away; pure functions of arrays."""
