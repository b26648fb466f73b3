"""Know the tokenizers of tiktoken by their names alone, without loading tiktoken."""

TIKTOKEN = ("gpt2", "r50k_base", "p50k_base", "p50k_edit", "cl100k_base", "o200k_base", "o200k_harmony")


def full_name(spec: str) -> str:
    """Return the whole name of a tokenizer: "tiktoken:gpt2" for "gpt2"; other names as they are."""
    return f"tiktoken:{spec}" if spec in TIKTOKEN else spec
