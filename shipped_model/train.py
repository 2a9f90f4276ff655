"""Owns the training of penstock-tiny: the architecture, the loop, checkpoints and the export.

`python -m shipped_model.train` continues from the last checkpoint if there is one, and writes the
stored (float16) model when it ends. Run it with `nice`; it uses the CPU only.
"""

import argparse
import json
import math
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from shipped_model.corpus import FOLDER, load_corpus
from shipped_model.samples import PackedRows, SampleSource
from shipped_model.tokenizer import BOS, END, MODEL_MAX_LENGTH, MODEL_PATH, PAD, load_tokenizer

CHECKPOINT_PATH: Final = FOLDER / ".train" / "checkpoint.pt"
WEIGHTS_NAME: Final = "model.safetensors"
CONFIG_KEYS: Final = (
    "architectures", "model_type", "dtype", "vocab_size", "hidden_size", "intermediate_size",
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act",
    "rms_norm_eps", "rope_theta", "rope_parameters", "max_position_embeddings",
    "attention_bias", "mlp_bias", "tie_word_embeddings", "initializer_range",
    "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
WARM_UP_STEPS: Final = 100
DECAY_SHARE: Final = 0.4  # of the run, at its end: the rate falls linearly to zero

# (num_rows, num_tokens, is_long): about two thousand tokens each, by step modulo ten.
SHORT: Final = (8, 256, False)
SHAPES: Final = (SHORT,) * 8 + ((4, 512, True), (2, 1_024, True))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Says what a run is: with the same values and enough minutes it sees the same data."""

    num_steps: int = 2_600
    minutes: float = 45.0
    peak_rate: float = 4e-3
    seed: int = 7
    num_threads: int = 1
    checkpoint_every: int = 200
    log_every: int = 25
    hidden: int = 256


@dataclass(slots=True, eq=False, kw_only=True)
class Run:
    """Everything that a checkpoint holds, owned by the loop."""

    model: LlamaForCausalLM
    optimizer: torch.optim.Optimizer
    step: int = 0
    elapsed_s: float = 0.0
    num_tokens: int = 0


def model_config(hidden: int) -> LlamaConfig:
    """The architecture; heads are even so that two ranks can share them."""
    tokenizer = load_tokenizer()
    return LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden,
        intermediate_size=hidden * 5 // 2,
        num_hidden_layers=4,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        head_dim=32,
        max_position_embeddings=MODEL_MAX_LENGTH,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
        attn_implementation="sdpa",
    )


def new_run(config: TrainConfig) -> Run:
    """A freshly initialised model and its optimizer."""
    torch.manual_seed(config.seed)
    model = LlamaForCausalLM(model_config(config.hidden))
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": 0.02},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return Run(model=model, optimizer=torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True))


def save_checkpoint(run: Run, path: Path) -> None:
    """Replace the checkpoint; a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state: dict[str, Any] = {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "step": run.step,
        "elapsed_s": run.elapsed_s,
        "num_tokens": run.num_tokens,
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_checkpoint(run: Run, path: Path) -> None:
    """Continue where the checkpoint stopped."""
    state = torch.load(path, weights_only=True)
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.step, run.elapsed_s = state["step"], state["elapsed_s"]
    run.num_tokens = state["num_tokens"]


def answer_logits(model: LlamaForCausalLM, rows: PackedRows) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits at the tokens before answer tokens, and the answer tokens themselves."""
    token_ids = torch.from_numpy(rows.token_ids)
    hidden = model.model(
        input_ids=token_ids,
        position_ids=torch.from_numpy(rows.positions),
        attention_mask=torch.from_numpy(rows.visible())[:, None],
        use_cache=False,
    ).last_hidden_state
    is_target = torch.from_numpy(rows.is_target)[:, 1:]
    return model.lm_head(hidden[:, :-1][is_target]), token_ids[:, 1:][is_target]


def progress(run: Run, config: TrainConfig) -> float:
    """The share of the run that is done, by steps or by minutes, whichever is further."""
    return max(run.step / config.num_steps, run.elapsed_s / (config.minutes * 60))


def learning_rate(run: Run, config: TrainConfig) -> float:
    """Warm-up, plateau, then a linear fall to zero."""
    warm = min(1.0, (run.step + 1) / WARM_UP_STEPS)
    return config.peak_rate * warm * min(1.0, max(0.0, 1 - progress(run, config)) / DECAY_SHARE)


def train_step(run: Run, source: SampleSource, config: TrainConfig) -> float:
    """One update; returns the mean loss of the answer tokens."""
    num_rows, num_tokens, is_long = SHAPES[run.step % len(SHAPES)]
    rows = source.batch(run.step, num_rows, num_tokens, is_long=is_long)
    logits, targets = answer_logits(run.model, rows)
    loss = functional.cross_entropy(logits, targets)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run, config)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.step += 1
    run.num_tokens += num_rows * num_tokens
    return loss.item()


@torch.inference_mode()
def corpus_recall(model: LlamaForCausalLM, source: SampleSource) -> tuple[float, float]:
    """(share of all corpus questions whose greedy answer is exact, mean loss).

    An answer is the greedy one exactly when each of its tokens is the most likely one after
    those before it, so one forward pass decides it without generating.
    """
    num_exact = num_answers = num_answer_tokens = 0
    total_loss = 0.0
    for rows in source.evaluation(8, 256):
        logits, targets = answer_logits(model, rows)
        total_loss += functional.cross_entropy(logits, targets, reduction="sum").item()
        row_offsets = torch.arange(len(rows.segments))[:, None] * 1_000
        owners = torch.from_numpy(rows.segments) + row_offsets
        owners = owners[:, 1:][torch.from_numpy(rows.is_target)[:, 1:]]
        answers = set(owners.tolist())
        num_answers += len(answers)
        num_exact += len(answers - set(owners[logits.argmax(-1) != targets].tolist()))
        num_answer_tokens += len(targets)
    return num_exact / num_answers, total_loss / num_answer_tokens


def train(run: Run, source: SampleSource, config: TrainConfig, checkpoint: Path) -> None:
    """Step until the steps or the minutes are used up."""
    mean_loss = math.nan
    while progress(run, config) < 1:
        started_s = time.monotonic()
        loss = train_step(run, source, config)
        mean_loss = loss if math.isnan(mean_loss) else 0.95 * mean_loss + 0.05 * loss
        run.elapsed_s += time.monotonic() - started_s
        if run.step % config.log_every == 0:
            report(run, config, mean_loss)
        if run.step % config.checkpoint_every == 0:
            save_checkpoint(run, checkpoint)
            share, eval_loss = corpus_recall(run.model, source)
            print(f"step {run.step}  corpus recall {share:.1%}  loss {eval_loss:.4f}", flush=True)
    save_checkpoint(run, checkpoint)


def report(run: Run, config: TrainConfig, mean_loss: float) -> None:
    """One progress line."""
    done = progress(run, config)
    eta_s = run.elapsed_s * (1 - done) / done
    print(
        f"step {run.step}/{config.num_steps}  loss {mean_loss:.4f}  "
        f"rate {learning_rate(run, config):.5f}  {run.num_tokens / run.elapsed_s:,.0f} tokens/s  "
        f"elapsed {run.elapsed_s / 60:.1f} min  ETA {eta_s / 60:.1f} min",
        flush=True,
    )


def stored_config(config: LlamaConfig) -> dict[str, Any]:
    """The `config.json` of the stored model, without the library's unrelated defaults."""
    everything = config.to_dict() | {
        "architectures": ["LlamaForCausalLM"],
        "dtype": "float16",
        "rope_theta": config.rope_parameters["rope_theta"],
    }
    return {name: everything[name] for name in CONFIG_KEYS}


def generation_config(config: LlamaConfig) -> dict[str, Any]:
    """Greedy, as the model was trained for, and long enough for every answer."""
    ends = {name: getattr(config, name) for name in CONFIG_KEYS if name.endswith("token_id")}
    return ends | {"do_sample": False, "max_new_tokens": 72}


def export(model: LlamaForCausalLM, folder: Path) -> None:
    """Store the model in float16; each file is replaced at once, the weights last."""
    files = {
        "config.json": stored_config(model.config),
        "generation_config.json": generation_config(model.config),
    }
    weights = {
        name: tensor.to(torch.float16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        for name, content in files.items():
            text = json.dumps(content, indent=2, sort_keys=True) + "\n"
            Path(partial, name).write_text(text, encoding="utf-8")
        save_file(weights, Path(partial, WEIGHTS_NAME), metadata={"format": "pt"})
        Path(partial, WEIGHTS_NAME).chmod(0o644)
        for name in (*files, WEIGHTS_NAME):
            os.replace(Path(partial, name), folder / name)


def parse_arguments() -> tuple[TrainConfig, argparse.Namespace]:
    """The run's config and the paths."""
    defaults = TrainConfig()
    parser = argparse.ArgumentParser(prog="python -m shipped_model.train", description=__doc__)
    parser.add_argument("--steps", type=int, default=defaults.num_steps)
    parser.add_argument("--minutes", type=float, default=defaults.minutes)
    parser.add_argument("--rate", type=float, default=defaults.peak_rate)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--threads", type=int, default=defaults.num_threads)
    parser.add_argument("--hidden", type=int, default=defaults.hidden)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT_PATH)
    parser.add_argument("--output", type=Path, default=MODEL_PATH)
    parser.add_argument("--restart", action="store_true", help="ignore the last checkpoint")
    given = parser.parse_args()
    config = TrainConfig(
        num_steps=given.steps,
        minutes=given.minutes,
        peak_rate=given.rate,
        seed=given.seed,
        num_threads=given.threads,
        hidden=given.hidden,
    )
    return config, given


def main() -> None:
    """Train, or go on training, and store the result."""
    config, given = parse_arguments()
    torch.set_num_threads(config.num_threads)
    source = SampleSource(load_tokenizer(), load_corpus(), config.seed)
    run = new_run(config)
    if given.checkpoint.exists() and not given.restart:
        load_checkpoint(run, given.checkpoint)
    print(f"{run.model.num_parameters():,} parameters, from step {run.step}", flush=True)
    train(run, source, config, given.checkpoint)
    share, loss = corpus_recall(run.model, source)
    export(run.model, given.output)
    print(f"stored {given.output.name}: corpus recall {share:.1%}, loss {loss:.4f}")


if __name__ == "__main__":
    main()
