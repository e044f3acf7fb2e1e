"""Write a tiny random Llama with its tokenizer and chat template into a folder: deterministic, no network, a few seconds.

Run with vLLM's environment (numpy, safetensors, tokenizers): `python make_tiny_model.py FOLDER`. What it says is nonsense;
what matters is that it says the same nonsense each time, in ASCII: weights are scaled so that the two best next tokens lie well
apart and greedy output does not depend on how the engine happened to batch, and tokens that are no text are never chosen.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SEED = 20
HIDDEN, LAYERS, HEADS, KV_HEADS, INTERMEDIATE, CONTEXT = 128, 2, 4, 2, 256, 4096
SPECIAL = ["<|begin|>", "<|turn|>", "<|end|>", "<|pad|>"]  # ids 0 to 3
TEXT = """A gate at the head of the pipe meters the water, and the turbines below it never run dry and never run over.
The queue is held at the gate, not in the machines: whoever waits there can still be sent anywhere.
Each machine keeps blocks of keys and values; a prompt that begins like an older one finds half its work done.
When a machine goes away in the middle of a sentence, another one picks up the sentence at the very next word.
Questions such as what is two plus two, which river is the longest, or who wrote this book deserve short answers.
def flow(gate, pipes): return sum(pipe.rate for pipe in pipes if gate.open)  # 0123456789 [] {} () <> "quoted" 'text'
"""
# A last assistant message that is to be continued stays open: no end token, no new turn.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|turn|>' + message['role'] + '\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}{{ part['text'] }}{%- endfor -%}{%- endif -%}"
    "{%- if not (loop.last and continue_final_message) -%}{{ '<|end|>\n' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|turn|>assistant\n' }}{%- endif -%}"
)


def build_tokenizer() -> Tokenizer:
    """Byte-level BPE: every byte is a token, so any input can be encoded; a few hundred merges from TEXT."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=640, min_frequency=1, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    return tokenizer


def never_said(tokenizer: Tokenizer) -> list[int]:
    """Tokens that are not printable ASCII on their own, special ones but the end included."""
    said = {"<|end|>"}
    return [
        token
        for text, token in tokenizer.get_vocab().items()
        if text not in said
        and (text in SPECIAL or not all(" " <= c <= "~" or c == "\n" for c in tokenizer.decode([token])))
    ]


def build_weights(vocab: int, never: list[int]) -> dict[str, np.ndarray]:
    """Gaussian, about unit variance through each matrix, with attention sharp enough not to fall into loops of one token.

    Llama's output has no bias, so the last hidden unit is made one: constant in the embedding, written by no layer.
    """
    rng = np.random.default_rng(SEED)
    head = HIDDEN // HEADS

    def matrix(rows: int, columns: int, std: float | None = None) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) * (std or columns**-0.5)).astype(np.float32)

    embedding = matrix(vocab, HIDDEN, std=1.0)
    embedding[:, -1] = 1
    weights = {"model.embed_tokens.weight": embedding}
    for layer in range(LAYERS):
        p = f"model.layers.{layer}."
        weights |= {
            p + "input_layernorm.weight": np.ones(HIDDEN, np.float32),
            p + "self_attn.q_proj.weight": matrix(HEADS * head, HIDDEN, std=0.2),
            p + "self_attn.k_proj.weight": matrix(KV_HEADS * head, HIDDEN, std=0.2),
            p + "self_attn.v_proj.weight": matrix(KV_HEADS * head, HIDDEN),
            p + "self_attn.o_proj.weight": matrix(HIDDEN, HEADS * head),
            p + "post_attention_layernorm.weight": np.ones(HIDDEN, np.float32),
            p + "mlp.gate_proj.weight": matrix(INTERMEDIATE, HIDDEN),
            p + "mlp.up_proj.weight": matrix(INTERMEDIATE, HIDDEN),
            p + "mlp.down_proj.weight": matrix(HIDDEN, INTERMEDIATE),
        }
        weights[p + "self_attn.o_proj.weight"][-1] = 0
        weights[p + "mlp.down_proj.weight"][-1] = 0
    weights["model.norm.weight"] = np.ones(HIDDEN, np.float32)
    output = matrix(vocab, HIDDEN, std=0.18)  # logits of spread 2: peaked, yet sampling still varies
    output[:, -1] = 0
    output[never, -1] = -40
    weights["lm_head.weight"] = output
    return weights


def write(folder: Path) -> None:
    tokenizer = build_tokenizer()
    vocab = tokenizer.get_vocab_size()
    begin, end, pad = (tokenizer.token_to_id(token) for token in ("<|begin|>", "<|end|>", "<|pad|>"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HIDDEN // HEADS,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": begin,
        "eos_token_id": end,
        "pad_token_id": pad,
        "torch_dtype": "float32",
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in (("config.json", config), ("tokenizer_config.json", tokenizer_config)):
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    save_file(build_weights(vocab, never_said(tokenizer)), folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    write(Path(sys.argv[1]))
