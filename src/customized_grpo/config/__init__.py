"""Recipes: what may be set, how it is read and checked, and how it is written down."""

from __future__ import annotations

from customized_grpo.config.loading import config_hash, diff_configs, dump_config, load_config, preset_names
from customized_grpo.config.schema import Config

__all__ = ["Config", "config_hash", "diff_configs", "dump_config", "load_config", "preset_names"]
