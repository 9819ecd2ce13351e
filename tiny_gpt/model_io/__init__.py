"""Folders in Hugging Face's form: their config, weights and tokenizer by the stock names, and reading them."""
