"""What the recipe `auto` does with a text, a machine and a budget: speed → choices → forecast, plan.py joins them."""
