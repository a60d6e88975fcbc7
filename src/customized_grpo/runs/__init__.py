"""Run folders: what is in one, its lock, its checkpoints, and reading a run back.

Nothing is re-exported here, so that taking the run lock does not import torch.
"""
