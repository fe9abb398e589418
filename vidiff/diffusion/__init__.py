"""The mathematics of diffusion: schedules, predictions, losses and guidance. No networks here."""
