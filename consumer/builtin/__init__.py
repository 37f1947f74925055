"""The kinds that come with every consumer: `echo` and `ai.analyze`.

Importing this package is cheap: numpy, tokenizers and openai are loaded by the first shard that needs them.
"""

from consumer.builtin.ai.handler import Analyze
from consumer.builtin.echo import echo

__all__ = ["Analyze", "echo"]
