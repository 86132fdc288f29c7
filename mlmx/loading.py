"""Loading what others published: weights as safetensors only, and none of their code unless the user says so."""

from __future__ import annotations

from pathlib import Path

# Transformers reads a pickle where there is nothing else; reading one can run any code.
ONLY_SAFETENSORS = {"use_safetensors": True}

_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def reason_for(error: Exception, where: str | Path) -> str:
    """Tell in one line why a model, tokenizer or config could not be loaded, and what to do where it was refused.

    Args:
        error: what Transformers raised.
        where: a folder or a hub repository.
    """
    if "trust_remote_code" in str(error):
        return "it brings code of its own, which runs only with trust_remote_code=true; read it first."
    folder = Path(where)
    if folder.is_dir() and not (folder / "config.json").is_file():
        return "it has no config.json."
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern)) if folder.is_dir() else []
    if pickles and not any(folder.glob("*.safetensors")):
        return f"its weights are a pickle ({pickles[0]}), which can run any code when it is read; save them as safetensors."
    return (str(error).splitlines() or [type(error).__name__])[0]
