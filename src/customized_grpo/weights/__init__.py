"""Models and tokenizers of a checkpoint, loaded with checks: nothing runs on weights or words made up."""
