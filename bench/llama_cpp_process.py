"""The process of llama.cpp, in an environment of its own: `python -m bench.llama_cpp_process
CHECKPOINT THREADS`. Writes the checkpoint as GGUF beside it first. Takes questions as JSON lines on
stdin, answers each on stdout, and ends with stdin.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench.peers import answer_questions

MOST_TOKENS = 40_960  # of all sequences together
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ENDS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    engine = _LlamaEngine(_as_gguf(Path(sys.argv[1])), int(sys.argv[2]))
    answer_questions(engine.answer, answers)


def _as_gguf(checkpoint: Path) -> Path:
    import gguf  # type: ignore[import-not-found,unused-ignore]
    from safetensors.numpy import load_file

    target = checkpoint / "model.gguf"
    config = json.loads((checkpoint / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(target), "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        stem = name.removesuffix(".weight")
        if stem in ENDS:
            writer.add_tensor(f"{ENDS[stem]}.weight", tensor)
            continue
        _, _, layer, part = stem.split(".", 3)
        for rotated, num in (("self_attn.q_proj", heads), ("self_attn.k_proj", kv_heads)):
            if part == rotated:  # pairs side by side, as its rotation wants them
                pairs = tensor.reshape(num, 2, -1, tensor.shape[1]).swapaxes(1, 2)
                tensor = pairs.reshape(tensor.shape).copy()
        writer.add_tensor(f"blk.{layer}.{NAMES[part]}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


class _LlamaEngine:
    def __init__(self, model: Path, threads: int) -> None:
        import llama_cpp  # type: ignore[import-not-found,unused-ignore]

        self._lib = llama_cpp
        self._silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silent, None)
        self._model = llama_cpp.llama_model_load_from_file(
            str(model).encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = MOST_TOKENS, MOST_TOKENS, 64
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        params.kv_unified = True
        # Which rounds to halves: 8 of 16 tokens were the same with it, and steps no faster.
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._batch = llama_cpp.llama_batch_init(MOST_TOKENS, 0, 1)
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def answer(
        self, prompts: list[list[int]], num_steps: int = 0, num_tokens: int = 0
    ) -> dict[str, Any]:
        if num_tokens:
            return {"tokens": self._generate(prompts, num_tokens)[1]}
        prefill_s, _, decode_s = self._generate(prompts, num_steps + 1)
        return {"seconds": decode_s if num_steps else prefill_s}

    def _generate(
        self, prompts: list[list[int]], num_tokens: int
    ) -> tuple[float, list[list[int]], float]:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        began = time.perf_counter()
        last = self._step(prompts, [0] * len(prompts))
        prefilled = time.perf_counter()
        outputs = [[token] for token in last]
        for step in range(num_tokens - 1):
            starts = [len(prompt) + step for prompt in prompts]
            last = self._step([[token] for token in last], starts)
            for output, token in zip(outputs, last, strict=True):
                output.append(token)
        return prefilled - began, outputs, time.perf_counter() - prefilled

    def _step(self, tokens: list[list[int]], starts: list[int]) -> list[int]:
        """The greedy next token of each sequence."""
        import numpy as np

        batch, place, last = self._batch, 0, []
        for sequence, (ids, start) in enumerate(zip(tokens, starts, strict=True)):
            for offset, token in enumerate(ids):
                batch.token[place], batch.pos[place] = token, start + offset
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
                batch.logits[place] = offset == len(ids) - 1
                place += 1
            last.append(place - 1)
        batch.n_tokens = place
        if self._lib.llama_decode(self._context, batch):
            raise RuntimeError("llama.cpp does not decode: see above")
        logits = (self._lib.llama_get_logits_ith(self._context, each) for each in last)
        return [int(np.ctypeslib.as_array(row, (self._vocab,)).argmax()) for row in logits]


if __name__ == "__main__":
    main()
