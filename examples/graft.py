"""Put dynamic short convolutions into a Hugging Face model, train it on a text file, save it, load it, generate.

python examples/graft.py README.md                           # a tiny Llama, from scratch, one token a byte: a minute
python examples/graft.py book.txt --model Qwen/Qwen3-0.6B    # a pretrained one, which goes on unchanged at first
"""

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import dynaconv


class Bytes:
    """A tokenizer of bytes."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("--model")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--output", default="runs/grafted")
    options = parser.parse_args()
    if options.model:
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        model = AutoModelForCausalLM.from_pretrained(options.model)
        dynaconv.graft(model, "qkv", init="identity")  # it computes what it did, until it is trained
    else:
        tokenizer = Bytes()
        sizes = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=256, **sizes))
        dynaconv.graft(model, "qkv", "lowrank", width=4, rank=16)

    with open(options.text, encoding="utf-8") as file:
        ids = torch.tensor(tokenizer(file.read())["input_ids"])
    window = min(128, len(ids))
    rows = [{"input_ids": row, "labels": row} for row in ids[: len(ids) // window * window].view(-1, window)]
    arguments = TrainingArguments(
        options.output, max_steps=options.steps, learning_rate=1e-3, report_to="none", logging_steps=50,
        per_device_train_batch_size=8,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    trainer.save_model()

    loaded = dynaconv.from_pretrained(options.output).to(model.device)
    prompt = ids[None, :16].to(model.device)
    print(tokenizer.decode(loaded.generate(prompt, max_new_tokens=64, do_sample=False)[0].tolist()))


if __name__ == "__main__":
    main()
