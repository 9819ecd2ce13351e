"""Training on a CPU: the whole loss and its gradients by torch's products and compiled loops between them."""
