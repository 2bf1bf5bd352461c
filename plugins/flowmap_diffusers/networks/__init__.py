"""Networks in the form of diffusers that diffusers does not have, a published model a file."""
