"""What training changed in a model, as an adapter; and that difference on another model.

`weights` reads checkpoints, `lowrank` factors a difference, `roles` tells what a tensor is, `extract` makes an adapter
of two models, `adapter` writes and reads the folders of adapters.
"""
