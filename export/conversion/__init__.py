"""From a trained model to a folder that is proved and served."""
