"""Where a model is guessing: token confidence, consistency of samples, contradiction, probe sets. No torch, no gradio.

These are measures of uncertainty. A model that repeats a falsehood with confidence is not caught by any of them.
"""
