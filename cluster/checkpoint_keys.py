"""Says what becomes of each key of a checkpoint's JSON files: literal tables, kept true to the
installed `transformers` by a test. What they mean for a directory is `checkpoint_review`.

A key that the reference acts on is honoured, or refused by name; one that it ignores is ignored.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final


class KeyFate(StrEnum):
    HONOURED = "honoured"
    IGNORED = "ignored"
    REFUSED = "refused"  # where its value is none of `harmless`


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRule:
    fate: KeyFate
    why: str = ""  # a clause: of the ignored, what it is for; of the refused, what it would do
    harmless: tuple[Any, ...] = (None,)


Table = Mapping[str, KeyRule]


def _honoured(names: str) -> dict[str, KeyRule]:
    return {name: KeyRule(fate=KeyFate.HONOURED) for name in names.split()}


def _ignored(why: str, names: str) -> dict[str, KeyRule]:
    return {name: KeyRule(fate=KeyFate.IGNORED, why=why) for name in names.split()}


def _refused(why: str, *harmless: Any, names: str) -> dict[str, KeyRule]:
    rule = KeyRule(fate=KeyFate.REFUSED, why=why, harmless=(None, *harmless))
    return dict.fromkeys(names.split(), rule)


# generation_config.json; where there is none, the reference reads these from config.json

_DRAWS: Final = "the way it draws is not offered"

GENERATION: Final[Table] = {
    **_honoured("do_sample temperature top_k top_p min_p repetition_penalty eos_token_id"),
    **_honoured("max_new_tokens max_length"),
    **_refused("it makes every answer longer", 0, names="min_length min_new_tokens"),
    **_refused("it ends answers at texts", [], names="stop_strings"),
    **_refused("it ends answers by the clock", names="max_time"),
    **_refused("beams are not searched", 1, names="num_beams num_beam_groups"),
    **_refused(
        "the tokens it forbids or forces would be drawn",
        [],
        {},
        names="suppress_tokens begin_suppress_tokens bad_words_ids forced_bos_token_id"
        " forced_eos_token_id force_words_ids constraints sequence_bias token_healing",
    ),
    **_refused(_DRAWS, 1.0, names="typical_p encoder_repetition_penalty guidance_scale"),
    **_refused(
        _DRAWS,
        0.0,
        names="epsilon_cutoff eta_cutoff penalty_alpha diversity_penalty no_repeat_ngram_size"
        " encoder_no_repeat_ngram_size",
    ),
    **_refused(_DRAWS, False, names="remove_invalid_values renormalize_logits"),
    **_refused(
        _DRAWS,
        names="top_h watermarking_config exponential_decay_length_penalty dola_layers",
    ),
    **_ignored(
        "beams, which a single answer has none of",
        "early_stopping length_penalty num_return_sequences",
    ),
    **_ignored(
        "how the reference computes, not what",
        "use_cache cache_implementation cache_config max_cache_len compile_config disable_compile"
        " continuous_batching_config low_memory prefill_chunk_size use_mtp is_assistant"
        " num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold"
        " prompt_lookup_num_tokens max_matching_ngram_size assistant_early_exit"
        " assistant_lookbehind target_lookbehind speculation_type assistant_ensemble_weight",
    ),
    **_ignored(
        "what the reference returns beside the tokens",
        "output_attentions output_hidden_states output_scores output_logits"
        " return_dict_in_generate",
    ),
    **_ignored(
        "padding and beginnings, which the tokenizer decides",
        "pad_token_id bos_token_id decoder_start_token_id",
    ),
    **_ignored("a note", "transformers_version _from_model_config _commit_hash trust_remote_code"),
}

# config.json

_CONFIG: Final[Table] = {
    **_honoured(
        "model_type architectures vocab_size hidden_size intermediate_size num_hidden_layers"
        " num_attention_heads num_key_value_heads head_dim hidden_act max_position_embeddings"
        " rms_norm_eps rope_parameters rope_scaling rope_theta original_max_position_embeddings"
        " tie_word_embeddings eos_token_id tokenizer_class"
    ),
    **_refused("only a part of each head would turn", 1, names="partial_rotary_factor"),
    **_refused("quantised checkpoints are not supported yet", {}, names="quantization_config"),
    **_refused("quantised checkpoints are not supported yet", {}, names="quantization"),
    **_refused("quantised checkpoints are not supported yet", {}, names="compression_config"),
    **_refused("tokens would see later ones", True, names="is_causal"),
    **_refused("attention in chunks is not computed", names="attention_chunk_size"),
    **_refused("it has layers share their cache", [], names="kv_sharing_modes"),
    **_refused("it has layers differ", {}, names="per_layer_config"),
    **_refused("it names keys anew", {}, names="attribute_map"),
    **_refused("'rope_theta' is the name that counts", names="default_theta"),
    **_refused("it fuses weights", {}, names="fusion_config"),
    **_refused("it names another file of weights", names="transformers_weights"),
    **_refused("it names another file of configuration", [], names="configuration_files"),
    **_refused(
        "it is part of a model of several",
        {},
        names="text_config decoder generator text_encoder encoder vision_config audio_config",
    ),
    **_refused("there is no encoder", False, names="is_encoder_decoder"),
    **_ignored("training", "initializer_range attention_dropout gradient_checkpointing"),
    **_ignored(
        "training",
        "hidden_dropout hidden_dropout_prob attention_probs_dropout_prob resid_pdrop embd_pdrop"
        " attn_pdrop classifier_dropout init_std initializer_factor neftune_noise_alpha",
    ),
    **_ignored(
        "classifiers",
        "id2label label2id num_labels problem_type finetuning_task sep_token_id cls_token_id",
    ),
    **_ignored(
        "the precision it was saved in; answers are computed in float32", "dtype torch_dtype"
    ),
    **_ignored(
        "how the reference computes, not what",
        "use_cache pretraining_tp attn_implementation _attn_implementation"
        " _attn_implementation_internal experts_implementation _experts_implementation"
        " _experts_implementation_internal _flash_attn_2_enabled use_flash_attn"
        " chunk_size_feed_forward transformers.js_config",
    ),
    **_ignored(
        "what the reference returns beside the logits",
        "output_hidden_states output_attentions return_dict tie_last_hidden_states",
    ),
    **_ignored("padding and beginnings, which the tokenizer decides", "pad_token_id bos_token_id"),
    **_ignored("other families", "is_decoder add_cross_attention cross_attention_hidden_size"),
    **_ignored("other families", "tie_encoder_decoder pruned_heads prefix use_mrope"),
    **_ignored("code of the checkpoint's own, which is never run", "auto_map custom_pipelines"),
    **_ignored(
        "a note",
        "transformers_version _name_or_path name_or_path _commit_hash model_max_length"
        " max_sequence_length seq_length is_llama_config unsloth_fixed unsloth_version",
    ),
}
_BY_FAMILY: Final[Mapping[str, Table]] = {
    "llama": {
        **_honoured("attention_bias mlp_bias layer_types"),
        **_refused("the reference windows its cache and not its masks", names="sliding_window"),
        **_ignored("other families", "use_sliding_window max_window_layers"),
    },
    "qwen2": {
        **_honoured("use_sliding_window sliding_window max_window_layers layer_types"),
        **_ignored("other families", "attention_bias mlp_bias"),
    },
    "qwen3": {
        **_honoured(
            "attention_bias use_sliding_window sliding_window max_window_layers layer_types"
        ),
        **_ignored("other families", "mlp_bias"),
    },
    "mistral": {
        **_honoured("sliding_window layer_types"),
        **_ignored(
            "other families", "attention_bias mlp_bias use_sliding_window max_window_layers"
        ),
    },
}


def config_table(family: str, *, has_generation_config: bool) -> Table:
    """Gives the rules of config.json. Its generation parameters count where no file of their own
    holds them."""
    generation = GENERATION
    if has_generation_config:
        generation = {
            name: KeyRule(fate=KeyFate.IGNORED, why="generation, which has a file of its own")
            for name in GENERATION
        }
    return {**generation, **_CONFIG, **_BY_FAMILY[family]}


# rope_parameters or rope_scaling inside config.json, by kind

_ROPE_KEYS: Final[Mapping[str, str]] = {
    "default": "",
    "linear": "factor",
    "dynamic": "factor original_max_position_embeddings",
    "llama3": "factor low_freq_factor high_freq_factor original_max_position_embeddings",
    "yarn": "factor original_max_position_embeddings attention_factor beta_fast beta_slow mscale"
    " mscale_all_dim truncate",
}
ROPE_KINDS: Final = tuple(_ROPE_KEYS)
_OTHER_KINDS: Final = (
    "factor low_freq_factor high_freq_factor original_max_position_embeddings attention_factor"
    " beta_fast beta_slow mscale mscale_all_dim truncate short_factor long_factor"
)


def rope_table(kind: str) -> Table:
    return {
        **_ignored("other rotary types", _OTHER_KINDS),
        **_ignored("a note", "finetuned"),
        **_refused("it scales attention under a name of its own", 1, names="attn_factor"),
        **_refused("only a part of each head would turn", 1, names="partial_rotary_factor"),
        **_honoured("rope_type type rope_theta"),
        **_honoured(_ROPE_KEYS[kind]),
    }


# tokenizer_config.json and special_tokens_map.json

NAMED_TOKENS: Final = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_NAMED: Final = " ".join(NAMED_TOKENS)

TOKENIZER: Final[Table] = {
    **_honoured(_NAMED),
    **_honoured("tokenizer_class additional_special_tokens extra_special_tokens"),
    **_honoured("model_specific_special_tokens added_tokens_decoder split_special_tokens"),
    **_honoured("add_prefix_space legacy chat_template"),
    **_refused("it has code of its own make tokens", {}, names="auto_map"),
    **_refused("it names another file", [], names="fast_tokenizer_files"),
    **_refused("tokenizer.json is split by its own rule", False, names="fix_mistral_regex"),
    **_refused(
        "it takes spaces out of answers",
        False,
        names="clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
    ),
    **_ignored("tokenizer.json, whose post-processor decides", "add_bos_token add_eos_token"),
    **_ignored("tokenizers of words, not of bytes", "clean_up_tokenization_spaces"),
    **_ignored(
        "padding and truncation, which are not done",
        "model_max_length max_len padding_side truncation_side max_length stride"
        " truncation_strategy pad_to_multiple_of pad_token_type_id",
    ),
    **_ignored("a template of answers", "response_template response_schema"),
    **_ignored("cleaning of what users write", "chat_control_tokens"),
    **_ignored(
        "tokenizers that are not read from tokenizer.json",
        "vocab_file merges_file tokenizer_file spm_file sp_model_kwargs vocab merges vocab_size"
        " errors backend files_loaded init_inputs is_fast gguf_file keep_accents unk_id"
        " spaces_between_special_tokens use_default_system_prompt use_fast from_slow"
        " tokenizer_object tokenizer_padding tokenizer_truncation post_processor _json_padding"
        " _json_truncation _spm_precompiled_charsmap special_tokens_map_file do_lower_case"
        " tokenize_chinese_chars strip_accents",
    ),
    **_ignored(
        "a note",
        "name_or_path processor_class model_input_names verbose is_local local_files_only"
        " transformers_version token cache_dir revision _commit_hash tokenizer_type"
        " tokenizer trust_remote_code",
    ),
}

SPECIAL_TOKENS_MAP: Final[Table] = _honoured(
    f"{_NAMED} additional_special_tokens extra_special_tokens"
)

# Files of a directory that somebody may expect to be read

FILES: Final[Table] = {
    **_honoured(
        "config.json generation_config.json tokenizer.json tokenizer_config.json"
        " special_tokens_map.json added_tokens.json chat_template.jinja additional_chat_templates"
        " model.safetensors model.safetensors.index.json"
    ),
    **_refused("it is an adapter, which is not applied", names="adapter_config.json"),
    **_ignored("multimodal models", "chat_template.json processor_config.json"),
    **_ignored("multimodal models", "preprocessor_config.json video_preprocessor_config.json"),
    **_ignored(
        "tokenizers that are not read from tokenizer.json",
        "tokenizer.model tekken.json tiktoken.model vocab.json merges.txt vocab.txt",
    ),
    **_ignored("other programs", "params.json generation_config_for_text.json"),
    **_ignored("code of the checkpoint's own, which is never run", "custom_generate"),
}

# Keys in no table. In config.json a name with one of these words may be meant for the model.
_MODEL_WORDS: Final = re.compile(
    r"(?:^|[^a-z])(activation|alibi|attention|attn|bias|embeddings?|experts?|ffn|heads?|hidden"
    r"|interleaved|kv|layers?|logits?|logn|mlp|moe|multiplier|norm|ntk|positions?|positional|quant"
    r"|quantization|residual|rope|rotary|scale|scaling|sinks?|softcap|softcapping|window)"
    r"(?:[^a-z]|$)"
)
EMPTY: Final[tuple[Any, ...]] = (None, False, 0, "", [], {})


def may_mean_the_model(key: str, value: Any) -> bool:
    """Tells whether an unknown key of config.json could change what is computed."""
    return value not in EMPTY and _MODEL_WORDS.search(key.lower()) is not None
