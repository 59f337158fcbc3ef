"""The backbones in PyTorch, for comparison of speed and numbers alone: same arithmetic, parameters by published name.

PyTorch is optional (`pip install .[benchmark]`). Pictures are [B, C, H, W] in channels_last memory; the MLP takes [B, D].
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffad_jax.models import MLP, DiT, UNet
from diffad_jax.models.dit import TIME_FEATURES, sincos_positions
from diffad_jax.models.mlp import TIME_WIDTH


def twin(model: UNet | DiT | MLP, shape: tuple[int, ...]) -> nn.Module:
    """The same network in PyTorch, for data of one shape ([H, W, C] or [D])."""
    if isinstance(model, UNet):
        return TorchUNet(model, shape[-1]).to(memory_format=torch.channels_last)
    return TorchDiT(model, shape) if isinstance(model, DiT) else TorchMLP(model, shape[0])


def trainer(network: nn.Module, train: np.ndarray, batch_size: int, plain: bool = False) -> Callable[[], Tensor]:
    """A training step as a plain PyTorch loop would have it: rows, noise, L_simple, clipping, AdamW, moving average.

    train: [N, H, W, C] or [N, D]. plain: the optimiser as PyTorch chooses it, instead of its fused form.
    """
    data = torch.from_numpy(train)
    if data.ndim == 4:
        data = data.permute(0, 3, 1, 2)
    t = torch.arange(1, 1001) / 1000
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0).float()
    parameters: list[Tensor] = list(network.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, 1e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=None if plain else True)

    def step() -> Tensor:
        rows = torch.randint(len(data), (batch_size,))
        x_0 = data[rows]
        eps = torch.randn_like(x_0)
        index = torch.randint(1000, (batch_size,))
        a = alpha_bar[index].reshape(-1, *[1] * (x_0.ndim - 1))
        optimizer.zero_grad()
        loss = F.mse_loss(network(a.sqrt() * x_0 + (1 - a).sqrt() * eps, t[index]), eps)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            if plain:
                for mean, parameter in zip(average, parameters, strict=True):
                    mean.lerp_(parameter, 1e-3)
            else:
                torch._foreach_lerp_(average, parameters, 1e-3)
        return loss

    return step


def embedding(t: Tensor, width: int) -> Tensor:
    half = width // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half) / half)
    angles = (1000.0 * t - 1.0)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def time_network(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1)


class ResBlock(nn.Module):
    def __init__(self, model: UNet, inputs: int, features: int, resample: str = "none") -> None:
        super().__init__()
        self.resample, self.scale_shift = resample, model.scale_shift
        self.in_layers = nn.Sequential(group_norm(model, inputs), nn.SiLU(), conv(inputs, features))
        outputs = 2 * features if model.scale_shift else features
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * model.channels, outputs))
        self.out_layers = nn.Sequential(
            group_norm(model, features), nn.SiLU(), nn.Dropout(model.dropout), conv(features, features)
        )
        if inputs != features:
            self.skip_connection = nn.Conv2d(inputs, features, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.in_layers[1](self.in_layers[0](x))
        if self.resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        elif self.resample == "up":
            h, x = F.interpolate(h, scale_factor=2), F.interpolate(x, scale_factor=2)
        h = self.in_layers[2](h)
        condition = self.emb_layers(time)[..., None, None]
        if self.scale_shift:
            scale, shift = condition.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
        else:
            h = self.out_layers[0](h + condition)
        h = self.out_layers[3](self.out_layers[2](self.out_layers[1](h)))
        return h + (self.skip_connection(x) if hasattr(self, "skip_connection") else x)


class Attention(nn.Module):
    def __init__(self, model: UNet, channels: int) -> None:
        super().__init__()
        self.heads = channels // model.head_channels if model.head_channels else model.num_heads
        self.norm = group_norm(model, channels)
        self.qkv, self.proj_out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        h = F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1)).transpose(1, 2).flatten(2)
        return x + self.proj_out(h).transpose(1, 2).reshape(x.shape)


class Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = conv(channels, channels, 2)

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        return self.op(x)


class Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2))


def group_norm(model: UNet, channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(model.norm_groups, channels), channels)


class TorchUNet(nn.Module):
    """`diffad_jax.models.UNet` without patches."""

    def __init__(self, model: UNet, inputs: int) -> None:
        super().__init__()
        assert model.patch_size == 1 and not model.learned_variance
        self.channels = width = model.channels
        self.time_embed = time_network(width, 4 * width)
        features = width * model.channel_multipliers[0]
        last = len(model.channel_multipliers) - 1
        self.input_blocks: Any = nn.ModuleList([nn.ModuleList([conv(inputs, features)])])
        skips = [features]

        def blocks(inputs: int, level: int) -> nn.ModuleList:
            outputs = width * model.channel_multipliers[level]
            parts: list[nn.Module] = [ResBlock(model, inputs, outputs)]
            if 2**level in model.attention_factors:
                parts.append(Attention(model, outputs))
            return nn.ModuleList(parts)

        by_block = model.resample == "block"
        for level, multiplier in enumerate(model.channel_multipliers):
            for _ in range(model.num_blocks):
                self.input_blocks.append(blocks(features, level))
                features = width * multiplier
                skips.append(features)
            if level < last:
                down = ResBlock(model, features, features, "down") if by_block else Down(features)
                self.input_blocks.append(nn.ModuleList([down]))
                skips.append(features)
        self.middle_block = nn.ModuleList(
            [ResBlock(model, features, features), Attention(model, features), ResBlock(model, features, features)]
        )
        self.output_blocks: Any = nn.ModuleList()
        for level in range(last, -1, -1):
            for i in range(model.num_blocks + 1):
                parts = blocks(features + skips.pop(), level)
                features = width * model.channel_multipliers[level]
                if level and i == model.num_blocks:
                    parts.append(ResBlock(model, features, features, "up") if by_block else Up(features))
                self.output_blocks.append(parts)
        self.out = nn.Sequential(group_norm(model, features), nn.SiLU(), conv(features, inputs))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        time = self.time_embed(embedding(t, self.channels))
        h = self.input_blocks[0][0](x)
        skips = [h]
        for parts in self.input_blocks[1:]:
            for part in parts:
                h = part(h, time)
            skips.append(h)
        for part in self.middle_block:
            h = part(h, time)
        for parts in self.output_blocks:
            h = torch.cat([h, skips.pop()], dim=1)
            for part in parts:
                h = part(h, time)
        return self.out(h)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.adaLN_modulation(time)[:, None].chunk(6, dim=-1)
        h = self.attn["qkv"](modulate(x, shift_1, scale_1)).unflatten(-1, (3, self.heads, -1))
        h = F.scaled_dot_product_attention(*h.permute(2, 0, 3, 1, 4)).transpose(1, 2).flatten(2)
        x = x + gate_1 * self.attn["proj"](h)
        h = F.gelu(self.mlp["fc1"](modulate(x, shift_2, scale_2)), approximate="tanh")
        return x + gate_2 * self.mlp["fc2"](h)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class TorchDiT(nn.Module):
    """`diffad_jax.models.DiT` for pictures."""

    def __init__(self, model: DiT, shape: tuple[int, ...]) -> None:
        super().__init__()
        assert not model.learned_variance
        width, depth, heads = model.dimensions
        self.patch, self.rows, self.columns = model.patch_size, *(side // model.patch_size for side in shape[:2])
        features = shape[2] * self.patch**2
        self.x_embedder = nn.ModuleDict({"proj": nn.Linear(features, width)})
        self.t_embedder = nn.ModuleDict({"mlp": time_network(TIME_FEATURES, width)})
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.final_layer = nn.ModuleDict(
            {
                "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width)),
                "linear": nn.Linear(width, features),
            }
        )
        self.register_buffer("positions", torch.from_numpy(sincos_positions(width, self.rows, self.columns)), False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        p = self.patch
        batch, channels, height, width = x.shape
        tokens = x.reshape(batch, channels, self.rows, p, self.columns, p).permute(0, 2, 4, 3, 5, 1)
        h = self.x_embedder["proj"](tokens.reshape(batch, self.rows * self.columns, -1)) + self.positions
        time = self.t_embedder["mlp"](embedding(t, TIME_FEATURES))
        for block in self.blocks:
            h = block(h, time)
        shift, scale = self.final_layer["adaLN_modulation"](time)[:, None].chunk(2, dim=-1)
        h = self.final_layer["linear"](modulate(h, shift, scale))
        h = h.reshape(batch, self.rows, self.columns, p, p, channels).permute(0, 5, 1, 3, 2, 4)
        return h.reshape(batch, channels, height, width)


class TorchMLP(nn.Module):
    """`diffad_jax.models.MLP` over all features."""

    def __init__(self, model: MLP, features: int) -> None:
        super().__init__()
        assert model.features is None and not model.learned_variance
        width = model.width
        self.time = time_network(TIME_WIDTH, TIME_WIDTH)
        self.input = nn.Linear(features, width)
        self.condition = nn.ModuleList(nn.Linear(TIME_WIDTH, 2 * width) for _ in range(model.depth))
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(model.depth))
        self.residual = nn.ModuleList(nn.Linear(width, width) for _ in range(model.depth))
        self.norm, self.output = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, features)
        self.dropout = nn.Dropout(model.dropout)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = F.silu(self.time(embedding(t, TIME_WIDTH)))
        h = self.input(x)
        for condition, hidden, residual in zip(self.condition, self.hidden, self.residual, strict=True):
            scale, shift = condition(time).chunk(2, dim=-1)
            r = F.silu(hidden(modulate(h, shift, scale)))
            h = h + residual(self.dropout(r))
        return self.output(F.silu(self.norm(h)))
