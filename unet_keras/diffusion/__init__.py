"""The maths of diffusion: schedules, predictions, samplers, guidance, and the model that trains. No U-Nets here."""
