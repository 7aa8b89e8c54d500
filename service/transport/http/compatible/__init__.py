"""APIs of other servers, for their clients: Text Embeddings Inference and OpenAI's embeddings."""
