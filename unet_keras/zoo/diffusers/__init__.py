"""diffusers' checkpoints: configurations to networks, tensors to variables, scheduler files to schedules, and back."""
