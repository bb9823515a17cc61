"""Distillation: a student of state-space layers is made of a transformer, and trained on its logits and states.

`student` builds a student from a teacher's configuration, `initial` gives it the teacher's weights and solves for the
rest, `mixing` has the matrices that state-space layers apply to a text, `losses` is what is minimised, and `training`
minimises it in stages. `scan` is the scan of Mamba-1 in linear time.
"""
