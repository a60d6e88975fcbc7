"""The command line: one thin file per verb; anything heavy is imported inside the verb that needs it."""
