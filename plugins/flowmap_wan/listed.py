"""What a list of the family says, without torch."""

FORMS = ("comfyui", "diffusers", "lora")
"""Of `WanSpec.forms`, for a list that loads no network."""
