"""Generators behind one interface; see README.md. Importing this package imports torch, not diffusers."""

from customized_grpo.policies.base import Conditioning, Policy
from customized_grpo.policies.flux1 import Flux1Policy
from customized_grpo.policies.loading import load_policy

__all__ = ["Conditioning", "Flux1Policy", "Policy", "load_policy"]
