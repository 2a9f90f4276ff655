"""What the front knows of a model is what the checkpoint says."""

from pathlib import Path

import pytest

from cluster.errors import CheckpointError
from cluster.model_digest import model_digest
from router.front.model_info import ModelInfo, SamplingDefaults
from tests.cluster.small_tokenizers import byte_level_backend, save_checkpoint


def test_a_model_is_known_by_its_files(tmp_path: Path) -> None:
    info = ModelInfo.load(save_checkpoint(tmp_path), "tiny")
    assert (info.name, info.context_length, info.vocab_size) == ("tiny", 64, 512)
    assert info.end_token_ids == (byte_level_backend().token_to_id("</s>"),)
    assert info.model_digest == model_digest(tmp_path)
    assert info.defaults == SamplingDefaults()
    assert not info.has_chat_template
    with_template = {"chat_template": "{{ messages[0].content }}"}
    assert ModelInfo.load(
        save_checkpoint(tmp_path, tokenizer_config=with_template), "tiny"
    ).has_chat_template


def test_an_operator_may_narrow_the_context_but_not_widen_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path)
    assert ModelInfo.load(tmp_path, "tiny", context_length=32).context_length == 32
    for length in (65, 0, -1):
        with pytest.raises(CheckpointError, match="give at most that"):
            ModelInfo.load(tmp_path, "tiny", context_length=length)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, SamplingDefaults()),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.5}, (0.0, 0, 0.5)),
        ({"do_sample": True}, (1.0, 0, 1.0)),
        ({"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}, (0.6, 20, 0.95)),
        ({"temperature": 0.6, "top_k": None}, (0.6, 0, 1.0)),
    ],
)
def test_defaults_come_from_the_generation_config(
    given: dict[str, object], expected: object, tmp_path: Path
) -> None:
    defaults = SamplingDefaults.load(save_checkpoint(tmp_path, generation_config=given))
    found = (defaults.temperature, defaults.top_k, defaults.top_p)
    assert expected in (defaults, found)


@pytest.mark.parametrize("top_k", [-1, 0, None])
def test_all_tokens_may_be_said_in_several_ways(top_k: int | None, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, generation_config={"top_k": top_k})
    assert SamplingDefaults.load(tmp_path).top_k == 0


def test_without_a_generation_config_the_model_s_config_speaks_for_it(tmp_path: Path) -> None:
    config: dict[str, object] = {"temperature": 0.3, "top_p": 0.5, "max_length": 40}
    save_checkpoint(tmp_path, config=config)
    defaults = SamplingDefaults.load(tmp_path)
    assert (defaults.temperature, defaults.top_p, defaults.max_length) == (0.3, 0.5, 40)
    save_checkpoint(tmp_path, config=config, generation_config={"top_k": 9})
    assert SamplingDefaults.load(tmp_path) == SamplingDefaults(top_k=9)


@pytest.mark.parametrize(
    ("generation", "num_prompt", "expected"),
    [
        ({}, 10, None),
        ({"max_new_tokens": 7}, 10, 7),
        ({"max_length": 30}, 10, 20),
        ({"max_length": 30}, 30, 0),
        ({"max_length": 30, "max_new_tokens": 7}, 30, 7),
    ],
)
def test_how_long_an_answer_is_may_be_said_by_the_generation_config(
    generation: dict[str, object], num_prompt: int, expected: int | None, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, generation_config=generation)
    assert SamplingDefaults.load(tmp_path).max_tokens(num_prompt) == expected


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"rope_scaling": YARN}, 256),  # added, as model cards advise
        ({"rope_parameters": YARN}, 256),
        ({"rope_scaling": YARN, "max_position_embeddings": 80}, 256),
        ({"rope_scaling": YARN, "max_position_embeddings": 256}, 256),
        ({"rope_scaling": YARN, "max_position_embeddings": 1000}, 1000),
        ({"rope_scaling": {"type": "yarn", "factor": 2.5}}, 160),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 64),
        ({"rope_scaling": {"type": "yarn", "factor": None}}, 64),
        ({"max_position_embeddings": 64, "sliding_window": 8, "model_type": "mistral"}, 64),
    ],
)
def test_yarn_reaches_its_factor_times_what_was_trained(
    config: dict[str, object], expected: int, tmp_path: Path
) -> None:
    assert ModelInfo.load(save_checkpoint(tmp_path, config=config), "m").context_length == expected


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"config": {"vocab_size": None}}, "vocab_size None"),
        ({"config": {"max_position_embeddings": "2048"}}, "positive integer, not '2048'"),
        ({"config": {"max_position_embeddings": True}}, "must be a positive integer"),
        ({"config": {"eos_token_id": 512}}, "correct eos_token_id"),
        ({"generation_config": {"temperature": "hot"}}, "temperature 'hot'"),
        ({"generation_config": {"top_p": 1.5}}, "top_p 1.5"),
        ({"generation_config": {"top_p": 0}}, "top_p 0"),
        ({"generation_config": {"repetition_penalty": 0}}, "repetition_penalty 0"),
    ],
)
def test_a_checkpoint_that_makes_no_sense_is_refused(
    files: dict[str, dict[str, object]], says: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=says):
        ModelInfo.load(save_checkpoint(tmp_path, **files), "tiny")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    (save_checkpoint(tmp_path) / name).unlink()
    with pytest.raises(CheckpointError, match=name.partition(".")[2] or name):
        ModelInfo.load(tmp_path, "tiny")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"null"])
def test_a_damaged_config_is_refused(content: bytes, tmp_path: Path) -> None:
    (save_checkpoint(tmp_path) / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="copy it again"):
        ModelInfo.load(tmp_path, "tiny")
