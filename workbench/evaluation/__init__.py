"""What a model is worth: answers to a dataset with their scores, tasks of lm-evaluation-harness, comparisons."""
