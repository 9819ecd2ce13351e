"""Training on a CPU: the whole loss and its gradients, by torch's matrix products and one kernel between any two."""
