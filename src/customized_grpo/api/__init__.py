"""The verbs of the command line as Python functions; `customized_grpo` itself offers them by name."""
