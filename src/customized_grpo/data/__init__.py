"""Data: the one place that opens images, and the manifest that lists training rows.

Nothing is re-exported here; checking a manifest does not import torch.
"""
