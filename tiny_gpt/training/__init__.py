"""Learning: trainer.py sequences, the other files each hold one idea. Yields events, prints nothing."""
