"""An app of the real project: commands of every temper."""
