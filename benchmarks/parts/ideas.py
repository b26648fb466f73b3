"""The ideas that the tables of experiments/RESULTS.md are about, with what is claimed of each."""

# What is claimed of each, in the original (jmward01/lmplay) at 6 or 12 layers of 768 on Wikipedia, one run each.
IDEAS = {
    "unified_embedding:tiny": "8 times as wide: 0.16 nats better than a model twice as deep",
    "unified_weights:tiny": "row gains on all weights: about 0.10 nats better early",
    "unified_weights_shared_bias:tiny_gain": "biases predicted by one shared network, row gains",
    "unified_weights_private:tiny": "biases predicted by a network of each layer",
    "unified_weights_shared:tiny": "all vectors predicted by shared matrices, no LayerNorms in the blocks: a big boost",
    "sacrificial_embedding_weights:tiny": "both of the first two: they add up",
    "sacrificial_all:tiny": "unified embedding and shared predictions, no LayerNorms in the blocks: they add up",
    "combined_all:tiny": "and learned residual weights",
    "attention_norm:tiny": "values normalised: about 0.06 nats better",
    "attention_position:tiny": "a learned term for the distance: position matters more than one thinks",
    "attention_focus:tiny": "a temperature of each query and head: nothing claimed",
    "residual_weights:tiny": "stream and branch weighted by feature, predicted: nothing claimed",
    "neural_memory:tiny": "cheaper than a transformer layer, and worth more",
    "memory_linear:tiny_direct": "every linear layer and the memory beside it",
    "memory_experts:tiny": "every linear layer and a mixture of learned vectors beside it",
    "memory_blocks:tiny": "blocks of such mixtures: each adds something, two in a row at most",
    "rank_promotion:tiny_alternating": "attention to summaries only: the best of its kind",
    "rank_promotion:tiny": "attention to summaries only, six levels of three: nothing claimed",
    "unified_embedding:tiny_1x": "a network behind a table of the same width: helps a little",
    "unified_embedding:tiny_16x": "16 times as wide: 0.20 nats better than a model twice as deep",
    "unified_embedding:tiny_positions": "on the positions: does not help",
    "unified_embedding:tiny_version2": "an ordinary table, a wider network, LayerNorm: nothing claimed",
    "unified_weights:tiny_columns": "row and column gains",
    "unified_weights:tiny_offsets": "gains and offsets of both",
    "unified_weights_private:tiny_column_gain": "column gains predicted: unstable",
    "attention_norm:tiny_keys": "keys normalised: worse than none early",
    "attention_norm:tiny_both": "keys and values: better than none, worse than values alone",
    "attention_norm:tiny_queries": "queries normalised: worse",
    "attention_position:tiny_multiply": "multiplied instead of added: better at first, worse in the long run",
    "attention_position:tiny_last_blocks": "the last two blocks only: nothing claimed",
    "attention_focus:tiny_simple": "a temperature of each block: a tiny early gain that does not last",
    "residual_weights:tiny_free": "by feature, free: nothing claimed",
    "residual_weights:tiny_scalar_linear": "two numbers, predicted: nothing claimed",
    "residual_weights:tiny_scalar_free": "two numbers, free: nothing claimed",
    "neural_memory:tiny_own_memories": "a memory of each block: a marked improvement",
    "recurrent_gpt2ish:tiny": "step by step training does not hurt",
}
# Like for like: what the families above may owe to something else.
FAIR = {
    "gpt2ish:tiny_std02": "embeddings that start at 0.2 instead of 0.02, as a unified embedding's output does",
    "gpt2ish:tiny_std1": "embeddings that start at 1.0, as the historical baseline's",
    "gpt2ish:tiny_fast_embedding": "10 times the learning rate for the embedding",
    "gpt2ish:tiny_6l": "half as deep again: what a family that grows the deployed model has to beat",
    "gpt2ish:tiny_8l": "twice as deep: what unified embeddings are said to beat",
    "gpt2ish:tiny_wide": "a quarter wider",
    "unified_weights_shared:tiny_norms": "with the LayerNorms of gpt2ish",
    "sacrificial_all:tiny_norms": "with the LayerNorms of gpt2ish",
    "combined_all:tiny_norms": "with the LayerNorms of gpt2ish",
}

# What benchmarks/tuned_families.py trains, in its order: one of each family first, the most telling and the cheapest of
# them before the others, then what is left of IDEAS. `recurrent_gpt2ish` is left out: it is gpt2ish's function.
ON_GPT2ISH_FIRST = (
    "attention_position:tiny",
    "unified_embedding:tiny",
    "attention_norm:tiny",
    "unified_weights:tiny",
)
ON_GPT2ISH_THEN = (
    "rank_promotion:tiny",  # the keys of tiny_alternating can't be shared out to three heads
    "sacrificial_embedding_weights:tiny",
    "combined_all:tiny",
    "attention_focus:tiny",
    "residual_weights:tiny",
    "neural_memory:tiny_own_memories",
    "unified_weights_shared:tiny",
    "unified_weights_private:tiny",
    "unified_weights_shared_bias:tiny_gain",
    "sacrificial_all:tiny",
    "memory_blocks:tiny",
    "memory_experts:tiny",
    "memory_linear:tiny_direct",
)
LEFT_OUT = ("recurrent_gpt2ish:tiny", "rank_promotion:tiny_alternating")
# The same ideas as changes of `modern`, and what each is there.
ON_MODERN = {
    "modern_attention_norm:d2": "values normalized, with a gain that starts at their scale without the norm",
    "modern_unified_embedding:d2": "a table 8 times as wide behind a small network",
    "modern_attention_position:d2": "a learned term for the distance, beside the rotary positions",
    "modern_unified_weights:d2": "row gains on all weights",
    "modern_pldr:d2": "an operator of the text between query and key",
    "modern_rank_promotion:d2": "attention to summaries only",
    "modern_attention_norm:d2_keys": "the keys' norm with a learned gain that starts at 1.2",
}
