"""SGLang's RemoteModelLoader.save_model, as far as Redis sees it.

Written after SGLang 0.5.23, below python/sglang/srt: `RemoteModelLoader.save_model` in
model_loader/loader.py, `RedisConnector` in connector/redis.py, `SafeSerializer` in
connector/serde/safe_serde.py, `pull_files_from_db` and its writer in connector/utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save


def save_remote_model(
    client: Any, model: str, folder: Path, ranks: Mapping[int, Mapping[str, torch.Tensor]]
) -> None:
    """Write each rank's tensors one by one, and the folder's text files under their bare names."""
    for rank, tensors in ranks.items():
        for name, tensor in tensors.items():
            blob = save({"tensor_bytes": tensor.cpu().contiguous()})
            client.set(f"{model}/keys/rank_{rank}/{name}", blob)
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and path.suffix in (".json", ".py"):
            client.set(f"{model}/files/{path.name}", path.read_text())
