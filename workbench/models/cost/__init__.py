"""What a run or a chat takes of a machine, from the model's sizes and the options alone: no weights, no torch.

`weights` are bytes of the model as it is loaded, `adapters` what is trained, `batch` the tokens of a micro-batch,
`experts` and `layers` what a layer keeps and needs while it is computed, `training`, `host` and `chat` put it together
(a GPU's memory of a run, the host's, and that of a loaded model), `plan` repeats what `train/fast/memory_plan.py`
decides, `constants` holds every number that was measured instead of derived, `changes` what saves most, `time` hours.
"""
