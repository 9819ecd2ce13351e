"""What the recipe `auto` does with a text, a machine and a time budget.

autotune finds the fastest backend, throughput times training steps, and pilot_run measures how hard the text is. From
these, heuristics chooses the model and the hyperparameters, scaling_law forecasts the loss, memory estimates the
footprint, and planner combines them into a Plan. types holds the plain values that pass between them.
"""
