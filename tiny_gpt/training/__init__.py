"""The mathematics of training: step, optimizer, schedule, budget, guard. It prints nothing and knows no files."""
