import torch
from flowmap_diffusers import Row, layout


def inputs(c):
    side = torch.tensor([[8.0 * n for n in c.shape[-2:]]], device=c.x.device).expand(len(c.x), 2)
    sizes = {"original_size": side, "target_size": side, "crop_coords": torch.zeros_like(side)}
    return {"hidden_states": c.x, "encoder_hidden_states": c.cond["text"], "timestep": c.t, **sizes}


ROW = Row(
    "CogView4Transformer2DModel", "CogView4Pipeline", inputs, ("time_condition_embed.timestep_embedder",), layout.IMAGE,
    tiny={"in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2,
          "text_embed_dim": 16, "time_embed_dim": 8, "condition_dim": 4, "pos_embed_max_size": 8, "sample_size": 8,
          "rope_axes_dim": (4, 4)},
    example={"z": (1, 4, 4, 6), "text": (5, 16)}, given={"text": "prompt_embeds"}, vae=(1, 8), hub="THUDM/CogView4-6B",
)  # fmt: skip
