"""From text files to batches of token ids: corpus, tokenizer, token_store, batches; prepare.py joins them."""
