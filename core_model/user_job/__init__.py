"""Training jobs that are not this project's: a user's own Python file, or a model of transformers."""

from core_model.user_job.contract import TrainingJob

__all__ = ["TrainingJob"]
