"""Read what config.json at Hugging Face says of a GPT-2 or a Llama, as fields of a Config.

Names and defaults are those of GPT2Config and LlamaConfig in the documentation of Hugging Face's transformers.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from lmplay.data.json_checks import boolean, positive_int, positive_number
from lmplay.errors import UserError

Content = dict[str, Any]


class ModelType(NamedTuple):
    """An architecture: the name of the plain one, and the fields of the Config by its config.json.

    fields: raises UserError for what the experiment does not have; takes what to call the model, too.
    """

    base: str
    fields: Callable[[Content, str], Content]


def _demand(content: Content, spec: str, **wanted: Any) -> None:
    for name, value in wanted.items():
        if content.get(name, value) != value:
            raise UserError(f"{spec}: {name} is {content[name]!r}; only {value!r} can be read")


def _gpt2(content: Content, spec: str) -> Content:
    c = {"n_embd": 768, "n_layer": 12, "n_head": 12, "activation_function": "gelu_new", **content}
    _demand(
        c,
        spec,
        layer_norm_epsilon=1e-5,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
    )
    tanh = {"gelu_new": True, "gelu_pytorch_tanh": True, "gelu": False}.get(c["activation_function"])
    if tanh is None:
        raise UserError(
            f"{spec}: activation_function is {c['activation_function']!r}; only gelu and gelu_new can be read"
        )
    return {
        "n_layer": c["n_layer"],
        "n_head": c["n_head"],
        "n_embd": c["n_embd"],
        "mlp_ratio": _ratio(c.get("n_inner") or 4 * c["n_embd"], c["n_embd"]),
        "tied": c.get("tie_word_embeddings", True),
        "head_bias": c.get("model_type") != "gpt2",
        "tanh_gelu": tanh,
    }


def _ratio(width: int, n_embd: int) -> float:
    """Return the ratio whose product with n_embd, rounded down, is the width."""
    ratio = width / n_embd
    return ratio if int(ratio * n_embd) == width else (width + 0.5) / n_embd


def _llama(content: Content, spec: str) -> Content:
    c = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, **content}
    c = {"rms_norm_eps": 1e-6, **c}
    _demand(c, spec, rms_norm_eps=1e-5, hidden_act="silu", attention_bias=False, mlp_bias=False, rope_scaling=None)
    _demand(c, spec, head_dim=c["hidden_size"] // c["num_attention_heads"])
    rope = c.get("rope_parameters") or {}
    _demand(rope, f"{spec}, rope_parameters", rope_type="default")
    # ceil(2 * mlp_ratio * n_embd / (3 * multiple)) * multiple, as in Llama's own code
    width, n_embd = c["intermediate_size"], c["hidden_size"]
    ratio = 1.5 * width / n_embd
    if math.ceil(2 * ratio * n_embd / 3) != width:
        ratio = 1.5 * (width - 0.5) / n_embd
    return {
        "n_layer": c["num_hidden_layers"],
        "n_head": c["num_attention_heads"],
        "n_kv_head": c.get("num_key_value_heads") or c["num_attention_heads"],
        "n_embd": n_embd,
        "mlp_ratio": ratio,
        "hidden_multiple": 1,
        "rope_base": float(c.get("rope_theta") or rope.get("rope_theta") or 10000.0),
        "tied": c.get("tie_word_embeddings", False),
    }


MODEL_TYPES = {
    "gpt2": ModelType("gpt2", _gpt2),
    "gpt2_with_head_bias": ModelType("gpt2", _gpt2),
    "llama": ModelType("llama", _llama),
}


def fields_of(kind: str, content: Content, spec: str) -> Content:
    """Return the fields of the Config by a config.json of this model_type. Raises UserError for what can't be read."""
    try:
        fields = MODEL_TYPES[kind].fields(content, spec)
        for name, value in fields.items():
            (positive_int if name.startswith("n_") else boolean if isinstance(value, bool) else positive_number)(value)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{spec}: config.json holds what no {kind} has ({error})") from error
    return fields


def same_but(fields: Content, own: Content) -> str:
    """Return a field that a model has otherwise, "" if there is none. Widths of layers are told by the shapes."""
    aside = {"mlp_ratio", "hidden_multiple"}
    for name, value in fields.items():
        mine = own.get(name)
        if name == "n_kv_head":
            mine = mine or own.get("n_head")
        if name not in aside and mine != value:
            return name
    return ""
