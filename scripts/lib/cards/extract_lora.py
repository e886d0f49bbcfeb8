"""The lines of a model card about LoRA adapters that are extracted from the model: none.

They are no forms of the model: an adapter is loaded with the base model.
"""

from lib.cards.lines import Lines


class ExtractLoraLines(Lines):
    """No lines."""

    name = "extract_lora"
