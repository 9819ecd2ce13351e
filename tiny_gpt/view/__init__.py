"""A run as others see it, made from the files in its folder alone: the report, the live page and their charts."""
