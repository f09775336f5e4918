"""Generates greedily with one engine: `python generate.py ENGINE FOLDER JSON`, in its environment.

Prints one line of JSON: the tokens. ENGINE is transformers, vllm or sglang; JSON are further
arguments of the engine's constructor. A script, since both engines start processes that import it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

PROMPT = [11, 222, 333, 1444, 2555, 3666, 77, 8]
TOKENS = 8
RESULT = "TOKENS "
"""What the line of the result begins with; engines print, too."""


def transformers(folder: str, options: dict[str, Any]) -> list[int]:
    """What every engine has to say."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    tokens = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False
    )
    return [int(token) for token in tokens[0, len(PROMPT) :]]


def vllm(folder: str, options: dict[str, Any]) -> list[int]:
    """The engine of vLLM in this process; its workers are others if there are several ranks."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=folder,
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=256,
        max_num_seqs=4,
        **options,
    )
    wishes = SamplingParams(max_tokens=TOKENS, temperature=0, detokenize=False, ignore_eos=True)
    (answer,) = llm.generate([{"prompt_token_ids": PROMPT}], wishes)
    return list(answer.outputs[0].token_ids)


def sglang(folder: str, options: dict[str, Any]) -> list[int]:
    """The engine of SGLang and its processes."""
    import sglang as package

    engine = package.Engine(
        model_path=folder,
        device="cpu",
        dtype="float32",
        skip_tokenizer_init=True,
        attention_backend="torch_native",
        sampling_backend="pytorch",
        disable_cuda_graph=True,
        mem_fraction_static=0.2,
        max_total_tokens=2048,
        grammar_backend="none",
        disable_overlap_schedule=True,
        disable_radix_cache=True,
        **options,
    )
    try:
        wishes = {"max_new_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
        answer = engine.generate(input_ids=PROMPT, sampling_params=wishes)
        return list(answer["output_ids"])
    finally:
        engine.shutdown()


ENGINES = {"transformers": transformers, "vllm": vllm, "sglang": sglang}

if __name__ == "__main__":
    engine, folder, options = sys.argv[1:]
    tokens = ENGINES[engine](folder, json.loads(options))
    print(f"{RESULT}{json.dumps(tokens)}", flush=True)
