"""Fine-tuning of `transformers` encoders on labelled texts of one's own: single texts or pairs, three problems."""
