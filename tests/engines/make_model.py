"""Writes the engines' test model: `python make_model.py FOLDER`. Runs in the engines' environment.

A Llama of 22 million float32 numbers in shards of 8 MB, small enough to load in a second and large
enough to be several files of several blocks.
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM, LlamaConfig


def main(folder: str) -> None:
    """Write it, the same every time."""
    torch.manual_seed(20)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    # Not `.to(bfloat16)` of a model: that casts the rotary buffers, too, and the logits differ.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder, max_shard_size="8MB")


if __name__ == "__main__":
    main(sys.argv[1])
