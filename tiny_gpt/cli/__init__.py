"""What each `tiny-gpt VERB` does once its flags are understood."""
