"""Small modules of `torch.nn` with random weights, for the tests of `from_torch`."""

import torch
from torch import nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """The block of ResNet-18, with a projection where the shape changes."""

    def __init__(self, fan_in, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or fan_in != width:
            conv = nn.Conv2d(fan_in, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(width))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """ResNet-18 in its shape, with `width` channels instead of 64."""

    def __init__(self, width=4, classes=5, blocks=2):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        fan_in = width
        for i in range(4):
            out = width * 2**i
            stride = 1 if i == 0 else 2
            first = BasicBlock(fan_in, out, stride)
            rest = [BasicBlock(out, out, 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{i + 1}", nn.Sequential(first, *rest))
            fan_in = out
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(fan_in, classes)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class InvertedResidual(nn.Module):
    """The block of MobileNetV2."""

    def __init__(self, fan_in, out, stride, ratio):
        super().__init__()
        hidden = fan_in * ratio
        self.is_residual = stride == 1 and fan_in == out
        self.conv = nn.Sequential(
            nn.Conv2d(fan_in, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, x):
        return x + self.conv(x) if self.is_residual else self.conv(x)


class MobileNet(nn.Module):
    """MobileNetV2 in its shape."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU6(inplace=True),
            InvertedResidual(4, 4, 1, 2),
            InvertedResidual(4, 6, 2, 3),
        )
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(6, 5))

    def forward(self, x):
        return self.classifier(self.features(x).mean([2, 3]))


def double(fan_in, out):
    return nn.Sequential(
        nn.Conv2d(fan_in, out, 3, padding="same"),
        nn.GroupNorm(2, out),
        nn.SiLU(),
    )


class UNet(nn.Module):
    """Two levels: one up by a transposed convolution, one by interpolation."""

    def __init__(self):
        super().__init__()
        self.down1 = double(3, 4)
        self.down2 = double(4, 6)
        self.bottom = double(6, 8)
        self.up2 = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.out2 = double(12, 6)
        self.up1 = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.out1 = double(10, 4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        first = self.down1(x)
        second = self.down2(functional.max_pool2d(first, 2))
        bottom = self.bottom(functional.avg_pool2d(second, 2))
        y = self.out2(torch.cat([second, self.up2(bottom)], dim=1))
        y = self.out1(torch.cat([first, self.up1(y)], dim=1))
        return self.head(functional.pad(y, (1, 1, 1, 1)))


class Encoder(nn.Module):
    """BERT in its shape: embeddings, a token in front, and `nn.TransformerEncoder`."""

    def __init__(self, batch_first=True):
        super().__init__()
        self.words = nn.Embedding(11, 8, padding_idx=0)
        self.positions = nn.Parameter(torch.randn(7, 8) * 0.1)
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        layer = nn.TransformerEncoderLayer(
            8, 2, 16, dropout=0.0, activation="gelu", batch_first=batch_first
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.batch_first = batch_first
        self.head = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, tokens):
        x = self.words(tokens)
        cls = self.cls.expand(tokens.shape[0], -1, -1)
        x = torch.cat([cls, x], dim=1) + self.positions
        if not self.batch_first:
            x = x.transpose(0, 1)
        x = self.encoder(x)
        x = x if self.batch_first else x.transpose(0, 1)
        return self.head(x[:, 0])


class CausalAttention(nn.Module):
    """The attention of GPT-2, written out or by the function of PyTorch."""

    def __init__(self, width, heads, length, fused):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.heads = heads
        self.fused = fused
        mask = torch.tril(torch.ones(length, length)).view(1, 1, length, length)
        self.register_buffer("mask", mask)

    def forward(self, x):
        batch, time, width = x.shape
        shape = (batch, time, self.heads, width // self.heads)
        q, k, v = (
            part.view(shape).transpose(1, 2) for part in self.qkv(x).split(width, 2)
        )
        if self.fused:
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = (q @ k.transpose(-2, -1)) * (1.0 / k.shape[-1] ** 0.5)
            hidden = self.mask[:, :, :time, :time] == 0
            y = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).contiguous().view(batch, time, width))


class Block(nn.Module):
    """A block of GPT-2."""

    def __init__(self, width, heads, length, fused):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = CausalAttention(width, heads, length, fused)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * width, width),
        )

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2 in its shape, whose head has the weight of the embedding."""

    def __init__(self, tokens=11, width=8, heads=2, length=6, depth=2, fused=True):
        super().__init__()
        self.wte = nn.Embedding(tokens, width)
        self.wpe = nn.Embedding(length, width)
        self.h = nn.ModuleList(Block(width, heads, length, fused) for _ in range(depth))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, tokens, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens):
        positions = torch.arange(tokens.shape[1])
        x = self.wte(tokens) + self.wpe(positions)
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class Classifier(nn.Module):
    """A bidirectional LSTM that reads its outputs and its final state."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.lstm = nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(20, 3)

    def forward(self, tokens):
        y, (h, _) = self.lstm(self.embedding(tokens))
        final = torch.cat([h[-2], h[-1]], dim=1)
        return self.fc(torch.cat([final, y.mean(1)], dim=1))
