"""Checkpoints that survive a kill at any instant: store, optimizer state, and the lock on a run folder.

Nothing is re-exported here, so that taking the run lock does not import torch.
"""
