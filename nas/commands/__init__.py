"""The commands that need no Trainer: plain typed functions, imported when they are called."""
