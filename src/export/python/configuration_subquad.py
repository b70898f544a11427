"""Configuration of a model that subquad converted: a softmax transformer whose attention became linear-time mixers.

Besides the usual sizes, config.json has three blocks, which modeling_subquad.py reads:

    subquad           what was replaced: mixer, its options, the window beside it, layers that keep softmax attention
    subquad_decoder   the decoder as data: sizes, norms, rotary positions, and the names of its tensors
    subquad_tensors   names and shapes of the mixers' own tensors
"""

from transformers import PretrainedConfig

FORMAT = 1


class SubquadConfig(PretrainedConfig):
    model_type = "subquad"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(self, *, tie_word_embeddings=None, use_cache=True, **kwargs):
        # Both are declared because save_pretrained leaves out what transformers has a default for: version 4 a
        # `tie_word_embeddings` that is true, version 5 every `use_cache`.
        if tie_word_embeddings is None:
            tie_word_embeddings = (kwargs.get("subquad_decoder") or {}).get("tied", False)
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
        self.use_cache = use_cache

    def decoder_block(self):
        """The block `subquad_decoder` with what transformers changes under keys of its own, as
        resize_token_embeddings does."""
        return {**self.subquad_decoder, "vocab": self.vocab_size, "tied": self.tie_word_embeddings}

    def to_dict(self):
        output = super().to_dict()
        if "subquad_decoder" in output:
            output["subquad_decoder"] = self.decoder_block()
        return output

    def checked(self):
        """This configuration, if it describes a model that this version of the modelling file can run."""
        for block in ("subquad", "subquad_decoder", "subquad_tensors"):
            if not isinstance(getattr(self, block, None), dict):
                raise ValueError(f"config.json has no block `{block}`: export the model again")
        if self.subquad.get("format") != FORMAT:
            raise ValueError(
                f"config.json is of format {self.subquad.get('format')}, and this modelling file reads {FORMAT}: "
                "both come from the same export"
            )
        return self
