"""The tables of keys name all that the installed reference reads, with the values it assumes."""

import ast
import inspect
import re
import textwrap
from dataclasses import MISSING, fields
from types import ModuleType
from typing import Any

import pytest
import transformers
from transformers import (
    GenerationConfig,
    GPT2Tokenizer,
    LlamaConfig,
    LlamaTokenizer,
    MistralConfig,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen3Config,
    cache_utils,
    masking_utils,
    modeling_rope_utils,
    tokenization_utils_base,
    tokenization_utils_tokenizers,
)
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

from cluster.checkpoint_config import ARCHITECTURES, completed
from cluster.checkpoint_keys import (
    FILES,
    GENERATION,
    NAMED_TOKENS,
    ROPE_KINDS,
    TOKENIZER,
    KeyFate,
    config_table,
    may_mean_the_model,
    rope_table,
)
from cluster.special_tokens import _CLASS_TOKENS

FAMILIES: dict[str, tuple[Any, ModuleType]] = {
    "llama": (LlamaConfig, modeling_llama),
    "qwen2": (Qwen2Config, modeling_qwen2),
    "qwen3": (Qwen3Config, modeling_qwen3),
    "mistral": (MistralConfig, modeling_mistral),
}
# What is no key: methods and what the reference makes of keys.
NO_KEYS = {"is_heterogeneous", "get_text_config", "standardize_rope_params", "json"}
# Read only for layer types that are refused, or by calls that are not made here.
OTHERS_ONLY = {"number_of_conv_states", "num_hidden_layers_per_stage"}


def table_of(family: str) -> dict[str, Any]:
    return dict(config_table(family, has_generation_config=False))


def read_of_config(source: str) -> set[str]:
    """Attributes of a configuration that code reads."""
    dotted = re.findall(r"\bconfig\.([a-z_0-9]+)\b(?!\()", source)
    asked = re.findall(r"(?:getattr|hasattr)\(\w*\.?\w*config, \"(\w+)\"", source)
    return {*dotted, *asked} - NO_KEYS


def test_the_families_are_those_that_are_served() -> None:
    assert set(FAMILIES) == set(ARCHITECTURES)
    for family, (config_class, _) in FAMILIES.items():
        assert config_class.model_type == family
        assert hasattr(transformers, ARCHITECTURES[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_of_the_configuration_is_in_the_table(family: str) -> None:
    names = {field.name for field in fields(FAMILIES[family][0])}
    assert names - table_of(family).keys() == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_attribute_that_the_model_reads_is_in_the_table(family: str) -> None:
    layers = inspect.getsource(cache_utils.get_layer_types_and_kwargs)
    sources = [FAMILIES[family][1], masking_utils, modeling_rope_utils]
    read = set().union(*(read_of_config(inspect.getsource(source)) for source in sources))
    read |= read_of_config(layers)
    assert {"hidden_size", "rope_parameters", "is_causal", "kv_sharing_modes"} <= read
    assert read - table_of(family).keys() - OTHERS_ONLY == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_absent_key_means_what_the_reference_assumes(family: str) -> None:
    defaults = {
        field.name: field.default
        for field in fields(FAMILIES[family][0])
        if field.default is not MISSING
    }
    ours = completed({}, family)
    assert FAMILIES[family][0].default_theta == ours.pop("rope_theta")
    assert {name: defaults[name] for name in ours} == ours
    # Of what is honoured, only sizes of the weights have a default that is not ours.
    honoured = {name for name, rule in table_of(family).items() if rule.fate is KeyFate.HONOURED}
    assumed = {name for name in honoured if defaults.get(name) is not None}
    assert assumed - ours.keys() == {
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        *({"eos_token_id"} if defaults["eos_token_id"] is not None else set()),
    }


def test_every_generation_parameter_is_in_the_table() -> None:
    names = {name for name in GenerationConfig().__dict__ if name != "_original_object_hash"}
    assert names - GENERATION.keys() == set()
    assert GenerationConfig._get_default_generation_params().keys() <= GENERATION.keys()


def test_what_the_reference_assumes_of_generation_is_harmless() -> None:
    assumed = GenerationConfig._get_default_generation_params()
    for name, rule in GENERATION.items():
        if rule.fate is KeyFate.REFUSED and name in assumed:
            assert assumed[name] in rule.harmless, name


@pytest.mark.parametrize("kind", ROPE_KINDS)
def test_every_rotary_parameter_is_in_the_table(kind: str) -> None:
    names = set(modeling_rope_utils.RopeParameters.__annotations__)
    # Sections of several positions a token: refused, as any that is in no table.
    assert names - rope_table(kind).keys() == {"mrope_section"}


def keyword_names(function: Any) -> set[str]:
    """Keys that a constructor takes or looks up."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    names = {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("pop", "get", "setdefault")
        and "kwargs" in ast.unparse(node.func.value)
        and isinstance(node.args[0], ast.Constant)
    }
    return names | set(inspect.signature(function).parameters) - {"self", "kwargs", "args", "cls"}


def test_every_setting_that_a_tokenizer_takes_is_in_the_table() -> None:
    base = tokenization_utils_base.PreTrainedTokenizerBase
    fast = tokenization_utils_tokenizers.TokenizersBackend
    functions = [base.__init__, fast.__init__, fast.convert_to_native_format.__func__]
    functions += [each.__init__ for each in (LlamaTokenizer, Qwen2Tokenizer, GPT2Tokenizer)]
    names = set().union(*map(keyword_names, functions))
    loading = inspect.getsource(base._from_pretrained)
    names |= set(re.findall(r"init_kwargs\.(?:pop|get)\(\"(\w+)\"", loading))
    assert {"split_special_tokens", "add_bos_token", "added_tokens_decoder", "legacy"} <= names
    assert names - TOKENIZER.keys() == set()


def test_the_roles_of_tokens_are_the_reference_s() -> None:
    base = tokenization_utils_base.PreTrainedTokenizerBase
    assert tuple(base.SPECIAL_TOKENS_ATTRIBUTES) == NAMED_TOKENS
    for cls in (LlamaTokenizer, Qwen2Tokenizer, GPT2Tokenizer):
        given = inspect.signature(cls.__init__).parameters
        assumed = {role: given[role].default for role in NAMED_TOKENS if role in given}
        assumed = {role: text for role, text in assumed.items() if text is not None}
        assert assumed == _CLASS_TOKENS[cls.__name__]


def test_every_file_that_the_tokenizer_reads_is_in_the_table() -> None:
    module = vars(tokenization_utils_base)
    names = {value for name, value in module.items() if name.endswith("_FILE")}
    assert {"tokenizer.json", "added_tokens.json", "chat_template.jinja"} <= names
    assert {name for name in names if isinstance(name, str)} - FILES.keys() == set()


@pytest.mark.parametrize(
    ("key", "value", "may"),
    [
        ("residual_multiplier", 0.22, True),
        ("attn_logit_softcapping", 50.0, True),
        ("num_experts", 8, True),
        ("rope_interleaved", False, False),
        ("rope_interleaved", True, True),
        ("unsloth_version", "2026.1", False),
        ("headline", "x", False),
    ],
)
def test_an_unknown_key_is_judged_by_its_name_and_value(key: str, value: Any, may: bool) -> None:
    assert may_mean_the_model(key, value) is may
