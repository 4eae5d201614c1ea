"""Continued pretraining: all of a text is trained. The same trainer as supervised fine-tuning; what differs is what
`load_data` makes of the rows: every token has a label, and texts are joined to full sequences, kept apart from each
other."""

from trl import SFTConfig

from workbench.train.stages.base import Stage
from workbench.train.stages.sft import SupervisedTrainer, own_arguments

STAGE = Stage("pt", SupervisedTrainer, SFTConfig, own_arguments)
