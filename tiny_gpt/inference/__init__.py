"""A trained model and a prompt in, text out. Never imports training."""
