"""The peers of train_step.py: a CLIP of a config's sizes in PyTorch, plain or open_clip's, one training step."""

import resource
import time

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Pre-norm attention and MLP, as CLIP's."""

    def __init__(self, width, heads, causal):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.rise, self.fall = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, length, _ = x.shape
        heads = self.qkv(self.first(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(*heads, is_causal=self.causal)
        x = x + self.out(y.transpose(1, 2).reshape(x.shape))
        y = self.rise(self.second(x))
        return x + self.fall(y * torch.sigmoid(1.702 * y))


class Clip(nn.Module):
    """Two towers with one embedding a side, of the sizes in a config's section `model`."""

    def __init__(self, embed_dim, image, text):
        super().__init__()
        tokens = (image["image_size"] // image["patch_size"]) ** 2 + 1
        self.patches = nn.Conv2d(3, image["width"], image["patch_size"], image["patch_size"], bias=False)
        self.class_token = nn.Parameter(torch.randn(image["width"]) * image["width"] ** -0.5)
        self.image_position = nn.Parameter(torch.randn(tokens, image["width"]) * image["width"] ** -0.5)
        self.image_norms = nn.ModuleList(nn.LayerNorm(image["width"]) for _ in range(2))
        self.words = nn.Embedding(text["vocab_size"], text["width"])
        self.text_position = nn.Parameter(torch.randn(text["length"], text["width"]) * 0.01)
        self.text_norm = nn.LayerNorm(text["width"])
        self.image_blocks = nn.Sequential(
            *(Block(image["width"], image["heads"], False) for _ in range(image["depth"]))
        )
        self.text_blocks = nn.Sequential(*(Block(text["width"], text["heads"], True) for _ in range(text["depth"])))
        self.image_projection = nn.Linear(image["width"], embed_dim, bias=False)
        self.text_projection = nn.Linear(text["width"], embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(14.0).log())

    def forward(self, pixels, ids):
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.to(x.dtype).expand(len(x), 1, -1), x], 1) + self.image_position
        x = self.image_norms[1](self.image_blocks(self.image_norms[0](x))[:, 0])
        y = self.text_norm(self.text_blocks(self.words(ids) + self.text_position)[:, -1])
        return (
            functional.normalize(self.image_projection(x), dim=-1),
            functional.normalize(self.text_projection(y), dim=-1),
            self.logit_scale.exp(),
        )


def open_clip_model(model):
    """open_clip's own CLIP of the same sizes."""
    from open_clip.model import CLIP

    image, text = model["image"], model["text"]
    vision = dict(
        layers=image["depth"],
        width=image["width"],
        head_width=image["width"] // image["heads"],
        patch_size=image["patch_size"],
        image_size=image["image_size"],
    )
    words = dict(
        context_length=text["length"],
        vocab_size=text["vocab_size"],
        width=text["width"],
        heads=text["heads"],
        layers=text["depth"],
    )
    return CLIP(model["embed_dim"], vision, words, quick_gelu=model["image"]["activation"] == "quick_gelu")


def measure(form, config, batch, repeat):
    """{seconds of a step, peak bytes, chip, library}: the median of some steps after two."""
    model = config["model"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    made = open_clip_model(model) if form == "open_clip" else Clip(model["embed_dim"], model["image"], model["text"])
    made = made.to(device)
    cuda = device.type == "cuda"
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-4, weight_decay=0.1, fused=cuda)
    forward = torch.compile(made) if cuda else made
    size, own = model["image"]["image_size"], torch.arange(batch, device=device)
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)
    ids = torch.randint(1, model["text"]["vocab_size"], (batch, model["text"]["length"]), device=device)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=model["dtype"] == "bfloat16"):
            image, text, scale = forward((images.float() / 255 - 0.45) / 0.27, ids)
            logits = scale * image @ text.T
            loss = (functional.cross_entropy(logits.float(), own) + functional.cross_entropy(logits.float().T, own)) / 2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimizer.step()
        return loss

    spent, of_threads = [], []
    for index in range(2 + repeat):
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats() if index == 2 else None
        started, before = time.perf_counter(), time.process_time()
        loss = step().item()
        if cuda:
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - started)
        of_threads.append(time.process_time() - before)
    assert loss == loss
    library = f"torch {torch.__version__}"
    if form == "open_clip":
        import open_clip

        library += f", open_clip {open_clip.__version__}"
    chip = torch.cuda.get_device_name() if cuda else "cpu"
    memory = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds, cpu_seconds = (sorted(values[2:])[repeat // 2] for values in (spent, of_threads))
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "memory": memory,
        "chip": chip,
        "chips": 1,
        "library": library,
        "peak": None,
    }
