"""What a run leaves on disk: checkpoints that verify themselves, its state, one owner at a time."""
