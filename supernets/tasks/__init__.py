"""Tasks: what a batch is, what the loss is, and how a subnetwork is scored."""

from supernets.tasks.base import Task
from supernets.tasks.classification import Classification
from supernets.tasks.language import LanguageModelling
from supernets.tasks.nodes import NodeClassification
from supernets.tasks.speaker import SpeakerVerification
from supernets.tasks.translation import Translation, greedy

__all__ = [
    "Classification",
    "LanguageModelling",
    "NodeClassification",
    "SpeakerVerification",
    "Task",
    "Translation",
    "greedy",
]
