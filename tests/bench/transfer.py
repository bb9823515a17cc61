"""Adapters of two models beside mergekit's: `python -m tests.bench.transfer peers PYTHON`, `... tensors`, `... memory`.

`peers` makes a pair of Qwen2 models (q, k and v with biases; tied) whose differences have a flat spectrum, and extracts
them at rank 16 by refine and by mergekit-extract-lora, which PYTHON has (PEER: more folders of packages). CPU seconds
are those of whole processes, alternating. `tensors` factors single differences beside LAPACK, which mergekit takes.
`memory` makes two models of 1.2 B parameters in bfloat16, in shards on disk, and measures the peak of an extraction's
own memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.terminal import say
from tests.conftest import ROOT
from trainer.transfer import lowrank
from trainer.transfer.adapter import ROOT as PREFIX
from trainer.transfer.adapter import TENSORS
from trainer.transfer.weights import Checkpoint, Writer, header, read

RANK = 16
LAYERS = 16
"""Layers of a model of 1.2 B parameters (the shape of Llama 3.2)."""


@torch.no_grad()
def make_pair(folder: Path, width: int, layers: int) -> None:
    """A Qwen2 model and one that differs everywhere, with singular values of i^-0.3 in each linear weight."""
    library = import_module("transformers")
    torch.manual_seed(0)
    config = library.Qwen2Config(
        vocab_size=4096, hidden_size=width, intermediate_size=width * 11 // 4, num_hidden_layers=layers
    )
    config.num_attention_heads = config.num_key_value_heads = width // 64
    config.tie_word_embeddings = True
    model = library.Qwen2ForCausalLM(config)
    model.save_pretrained(folder / "base")
    for name, p in model.named_parameters():
        if p.dim() == 2 and "embed" not in name:
            least = min(p.shape)
            left, right = (torch.linalg.qr(torch.randn(n, least)).Q for n in p.shape)
            d = (left * torch.arange(1, least + 1).float() ** -0.3) @ right.T
            p.add_(d * (0.1 * p.norm() / d.norm()))
        else:
            p.add_(torch.randn_like(p) * (0.1 if name.endswith("bias") else 0.1 * p.std()))
    model.save_pretrained(folder / "tuned")


def cost(command: list[str], folder: Path, path: str) -> tuple[float, float]:
    """CPU seconds and peak memory in MB of a command."""
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    script = "import resource, subprocess, sys; r = subprocess.run(sys.argv[1:], stdout=2, check=True); "
    script += "u = resource.getrusage(resource.RUSAGE_CHILDREN); print(u.ru_utime + u.ru_stime, u.ru_maxrss / 1024)"
    done = subprocess.run(
        [sys.executable, "-c", script, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    seconds, peak = map(float, done.stdout.split())
    return seconds, peak


def logits(folder: Path, adapter: Path | None = None) -> Tensor:
    model = import_module("transformers").AutoModelForCausalLM.from_pretrained(folder).eval()
    if adapter is not None:
        model = import_module("peft").PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        found: Tensor = model(input_ids=torch.arange(64)[None], use_cache=False).logits
    return found


def residuals(folder: Path, adapter: Path) -> dict[str, float]:
    """|D - BA| / |D| of each linear weight."""
    base, tuned, found = Checkpoint.open(str(folder / "base")), Checkpoint.open(str(folder / "tuned")), {}
    tensors = header(adapter / TENSORS)
    for name, one in tensors.items():
        if name.endswith(".lora_A.weight") and "embed" not in name:
            key = f"{name.removeprefix(PREFIX).removesuffix('.lora_A.weight')}.weight"
            d = tuned.read(key).float() - base.read(key).float()
            b = read(tensors[name.replace(".lora_A.", ".lora_B.")]).float()
            found[key] = float((b @ read(one).float() - d).norm() / d.norm())
    return found


def peers(python: str) -> None:
    """Both tools on pairs of two widths."""
    script = f"import sys; sys.argv[0] = 'extract'; sys.path[:0] = {os.environ.get('PEER', '').split(':')!r}; "
    script += "from mergekit.scripts.extract_lora import main; main()"
    for width, layers, runs in ((1024, 2, 2), (2048, 2, 2)):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            make_pair(folder, width, layers)
            ours = ["-m", "pipeline.cli", "transfer", "extract", "base", "tuned", "--rank", str(RANK)]
            theirs = ["--model", f"{folder}/tuned", "--base-model", f"{folder}/base", "--max-rank", str(RANK)]
            for i in range(runs):
                refine = cost([sys.executable, *ours, "--out", "ours"], folder, os.environ["PYTHONPATH"])
                merge = cost([python, "-c", script, *theirs, "--out-path", "theirs"], folder, os.environ["PYTHONPATH"])
                say(f"width {width}, run {i}: refine {refine[0]:.1f} CPU s, {refine[1]:,.0f} MB")
                say(f"width {width}, run {i}: mergekit {merge[0]:.1f} CPU s, {merge[1]:,.0f} MB")
            both = residuals(folder, folder / "ours"), residuals(folder, folder / "theirs")
            worst = max(abs(both[0][name] / both[1][name] - 1) for name in both[0])
            say(f"  |D - BA| of {len(both[0])} weights: at most {worst:.1e} apart, relative")
            before, after = logits(folder / "base"), logits(folder / "tuned")
            for name in ("ours", "theirs"):
                error = (logits(folder / "base", folder / name) - after).norm() / (after - before).norm()
                say(f"  {name}: error of the logits, in the change of the logits: {float(error):.3f}")


def tensors() -> None:
    """CPU seconds of factoring one difference, beside LAPACK's decomposition in float32, which mergekit takes."""
    torch.set_num_threads(1)
    for shape in ((1024, 1024), (1024, 2816), (2048, 2048)):
        generator = torch.Generator().manual_seed(0)
        least = min(shape)
        left, right = (torch.linalg.qr(torch.randn(n, least, generator=generator)).Q for n in shape)
        d = (left * torch.arange(1, least + 1).float() ** -0.3) @ right.T
        spent, errors = [], []
        for options in ({"rank": RANK}, {"rank": None}, {"rank": RANK, "method": "lapack"}):
            began = time.process_time()
            found = lowrank.factor(d, name="d", **options)
            spent.append(time.process_time() - began)
            errors.append(float((d - found.b @ found.a).norm()))
        say(
            f"{shape[0]} x {shape[1]}: rank {RANK} {spent[0]:.2f} CPU s, by energy {spent[1]:.2f}, "
            f"LAPACK {spent[2]:.2f}; |D - BA| at rank {RANK} is {abs(errors[0] / errors[2] - 1):.1e} from LAPACK's"
        )


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (128_256, 2048), "model.norm.weight": (2048,)}
    for i in range(LAYERS):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (2048, 2048) for name in "qo"}
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (512, 2048) for name in "kv"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (8192, 2048) for name in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": (2048, 8192)}
        shapes |= {f"{at}.{name}_layernorm.weight": (2048,) for name in ("input", "post_attention")}
    return shapes


def _write_model(folder: Path, shapes: dict[str, tuple[int, ...]], scale: float) -> None:
    """A model in two shards: the same weights for any scale, plus as much noise."""
    folder.mkdir()
    config: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 2048}
    config |= {"num_hidden_layers": LAYERS, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256}
    config |= {"intermediate_size": 8192, "tie_word_embeddings": True, "head_dim": 64}
    (folder / "config.json").write_text(json.dumps(config))
    where = {}
    for shard in (0, 1):
        name = f"model-0000{shard + 1}-of-00002.safetensors"
        writer = Writer(folder / name)
        for i, (key, shape) in enumerate(shapes.items()):
            if i % 2 == shard:
                generator = torch.Generator().manual_seed(i)
                weight = torch.randn(shape, generator=generator)
                weight += scale * torch.randn(shape, generator=generator)
                writer.add(key, weight.bfloat16())
                where[key] = name
        writer.close()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def memory() -> None:
    """The peak of an extraction of two models of 1.2 B parameters."""
    shapes = _shapes()
    largest = max(torch.Size(shape).numel() for shape in shapes.values()) * 4 / 2**20
    count = sum(torch.Size(shape).numel() for shape in shapes.values())
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, scale in (("base", 0.0), ("tuned", 0.2)):
            _write_model(folder / name, shapes, scale)
        words = ["-m", "pipeline.cli", "transfer", "extract", "base", "tuned", "--rank", str(RANK), "--out", "made"]
        seconds, peak = cost([sys.executable, *words], folder, os.environ["PYTHONPATH"])
    say(f"{count / 1e9:.2f} B parameters, largest tensor {largest:,.0f} MB in float32: {seconds:.0f} CPU s")
    say(f"peak {peak:,.0f} MB; 3 x the largest tensor + 1 GB: {3 * largest + 1024:,.0f} MB")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(ROOT))
    {"peers": lambda: peers(sys.argv[2]), "tensors": tensors, "memory": memory}[sys.argv[1]]()
