#!/usr/bin/env bash
# Expected: `ZImagePipeline.encode_prompt(prompts)` leaves the list that it is given alone.
# Seen: it writes each prompt back with the chat template around it. A second call with the same list templates twice,
# and gives other embeddings, of more tokens.
# Hurts: whoever encodes one list of prompts twice, for two networks, two seeds or an evaluation after training.
# Do: give it a copy, `[*prompts]`.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0
venv/bin/python - <<'PYTHON'
import sys

import diffusers
import torch
import transformers
from diffusers import ZImagePipeline
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model
from transformers.convert_slow_tokenizer import bytes_to_unicode

print(f"diffusers {diffusers.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
signs = {sign: at for at, sign in enumerate(bytes_to_unicode().values())}
tokenizer = Qwen2Tokenizer(vocab={**signs, "<|endoftext|>": 256}, merges=[])
tokenizer.chat_template = "<user>{% for m in messages %}{{ m['content'] }}{% endfor %}</user>"
config = Qwen3Config(vocab_size=257, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
                     num_key_value_heads=1, head_dim=8)
pipe = ZImagePipeline(None, None, Qwen3Model(config).eval(), tokenizer, None)
prompts, tokens = ["a cat"], []
for _ in range(2):
    with torch.no_grad():
        made, _ = pipe.encode_prompt(prompts, device="cpu", do_classifier_free_guidance=False)
    tokens.append(len(made[0]))
    print(f"{tokens[-1]} tokens; the caller's list is now {prompts}")
if prompts == ["a cat"] or tokens[0] == tokens[1]:
    sys.exit("ZImagePipeline.encode_prompt now leaves the caller's list alone.")
PYTHON
