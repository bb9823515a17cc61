# ruff: noqa: INP001  an example, no part of the package
"""Fine-tune a causal language model on conversations: `python trainer/examples/fine_tune.py MODEL TEXTS OUT`.

An example of training elsewhere, in forty lines: TEXTS are JSON lines with messages, as `refine score --training-texts`
writes them. With `--scratch`, a new small Llama with MODEL's tokenizer is trained instead.
"""

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch


def main(words: list[str] | None = None) -> None:
    """Read the options, train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "texts", "out"):
        parser.add_argument(name)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", action="store_true")
    options = parser.parse_args(words)
    library: Any = import_module("transformers")
    torch.manual_seed(options.seed)
    tokenizer = library.AutoTokenizer.from_pretrained(options.model)
    model = _new(library, tokenizer) if options.scratch else library.AutoModelForCausalLM.from_pretrained(options.model)
    chats = [json.loads(line)["messages"] for line in Path(options.texts).read_text(encoding="utf-8").splitlines()]
    _train(model.train(), tokenizer, chats, options)
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)


def _new(library: Any, tokenizer: Any) -> Any:  # noqa: ANN401  transformers has no types
    shape = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return library.LlamaForCausalLM(
        library.LlamaConfig(**shape, **ends, vocab_size=len(tokenizer), max_position_embeddings=129)
    )


def _ids(tokenizer: Any, chats: list[Any]) -> list[torch.Tensor]:  # noqa: ANN401  transformers has no types
    """Each conversation by the chat template, with an end-of-text token behind it, at most 129 ids."""
    rendered = [tokenizer.apply_chat_template(chat, tokenize=False) + tokenizer.eos_token for chat in chats]
    return [torch.tensor(ids[:129]) for ids in tokenizer(rendered, add_special_tokens=False)["input_ids"]]


def _train(model: Any, tokenizer: Any, chats: list[Any], options: argparse.Namespace) -> None:  # noqa: ANN401
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=0.01)
    for step in range(options.steps):
        for group in optimiser.param_groups:
            group["lr"] = options.rate * min((step + 1) / 10, 1 - step / options.steps)
        chosen = _ids(tokenizer, [chats[i] for i in torch.randint(len(chats), (8,)).tolist()])
        batch = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=-100)
        loss = model(input_ids=batch.clamp(min=0), labels=batch).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


if __name__ == "__main__":
    main()
