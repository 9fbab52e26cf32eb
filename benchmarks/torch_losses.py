"""The loss in PyTorch, as public code has it and as fast as plain PyTorch gets: the peers of loss.py."""

import functools

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

CHUNK = 16  # texts of the chunked form at once
HIDDEN = -1e4  # the similarity of a pad


def two_products(images, texts, mask, full):
    """Return both similarities [i, j] from a product for each, as public code of FILIP has them."""
    s = torch.einsum("ipd,jtd->ijpt", images, texts).masked_fill(~mask[None, :, None], HIDDEN)
    image_to_text = s.max(dim=-1).values.float().mean(dim=-1)
    s = torch.einsum("jtd,ipd->jitp", texts, images)
    best = s.max(dim=-1).values.float() * mask[:, None]
    return image_to_text, (best.sum(dim=-1) / mask.sum(dim=-1)[:, None]).T


def one_product(images, texts, mask, full):
    """Return both similarities [i, j] from one product and two maxima: the best plain form. `full` texts have no pads."""
    (i, p, d), (j, t) = images.shape, mask.shape
    s = (images.reshape(-1, d) @ texts.reshape(-1, d).T).reshape(i, p, j, t)
    best = s.max(dim=1).values.float() * mask
    hidden = s if full else s.masked_fill(~mask, HIDDEN)
    return hidden.max(dim=3).values.float().mean(dim=1), best.sum(dim=2) / mask.sum(dim=1)


def chunked(images, texts, mask, full):
    """Return what `one_product` does, chunk by chunk of texts; the backward pass computes each chunk again."""
    pieces = [
        checkpoint(one_product, images, texts[n : n + CHUNK], mask[n : n + CHUNK], full, use_reentrant=False)
        for n in range(0, len(texts), CHUNK)
    ]
    return tuple(torch.cat(side, dim=1) for side in zip(*pieces))


FORMS = {
    "torch_one": one_product,
    "torch_two": two_products,
    "torch_chunked": chunked,
    "torch_compiled": one_product,  # under torch.compile
}


def loss_of(form, full):
    """Return the loss of a form as a function of images [i, p, d], texts [j, t, d] and mask [j, t]."""

    def loss(images, texts, mask):
        own = torch.arange(len(images), device=images.device)
        image_to_text, text_to_image = FORMS[form](images, texts, mask, full)
        return (cross_entropy(14.0 * image_to_text, own) + cross_entropy(14.0 * text_to_image.T, own)) / 2

    return torch.compile(loss) if form == "torch_compiled" else loss


def make_step(form, images, texts, mask, dtype):
    """Return (a step of forward and backward, the extra bytes that it takes on a GPU or None, a product of matrices, its FLOPs, the device)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images, texts, mask = (torch.from_numpy(x).to(device) for x in (images, texts, mask))
    images, texts = (x.to(getattr(torch, dtype)).requires_grad_() for x in (images, texts))
    loss, wait = loss_of(form, bool(mask.all())), torch.cuda.synchronize if device == "cuda" else lambda: None

    def step():
        images.grad = texts.grad = None
        value = loss(images, texts, mask)
        value.backward()
        wait()
        return value.detach(), (images.grad, texts.grad)

    square = torch.ones((8192 if device == "cuda" else 2048,) * 2, dtype=getattr(torch, dtype), device=device)

    def product():
        square @ square
        wait()

    peak = functools.partial(_peak, step) if device == "cuda" else None
    return (
        step,
        peak() if peak else None,
        product,
        2 * len(square) ** 3,
        torch.cuda.get_device_name() if peak else device,
    )


def _peak(step):
    step()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before
