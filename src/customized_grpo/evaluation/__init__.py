"""Evaluation: statistics with honest intervals, monitors against reward hacking, and the alarms they raise.

Nothing is re-exported here: statistics and alarms do not import torch.
"""
