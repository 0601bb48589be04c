"""Tasks: what a batch is, what the loss is, and how a subnetwork is scored."""

from supernets.tasks.base import Task
from supernets.tasks.classification import Classification

__all__ = ["Classification", "Task"]
