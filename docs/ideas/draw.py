"""Draw the pictures of this folder: python docs/ideas/draw.py. Each is a function below, named as its page.

Blue is what the idea adds, orange and dashed what is there for training only, gray what gpt2ish has. A picture brings
its own background, dark where the reader's screen is.
"""

from html import escape
from pathlib import Path

STYLE = """
svg { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif }
.page { fill: #ffffff } text { fill: #1f2328 } .soft { fill: #59636e; font-size: 12px } .head { font-weight: 600 }
.plain { fill: #eff1f4; stroke: #7d8590 } .new { fill: #d8e9fc; stroke: #0b62b8 }
.gone { fill: #fdefd6; stroke: #b35900; stroke-dasharray: 4 3 } .bare { fill: none; stroke: #7d8590 }
.line { fill: none; stroke: #59636e; stroke-width: 1.4 } .blue { fill: none; stroke: #0b62b8; stroke-width: 1.8 }
.tip { fill: #59636e }
@media (prefers-color-scheme: dark) {
.page { fill: #161b22 } text { fill: #e6edf3 } .soft { fill: #9ea7b3 }
.plain { fill: #2a3038; stroke: #8b949e } .new { fill: #143a63; stroke: #6cb0ff }
.gone { fill: #40300f; stroke: #e3a13a } .bare { stroke: #8b949e }
.line { stroke: #9ea7b3 } .blue { stroke: #6cb0ff } .tip { fill: #9ea7b3 }
}
"""


class Picture:
    """Elements of one SVG; all lengths are in pixels."""

    def __init__(self, width: int, height: int, about: str):
        self.width, self.height, self.about, self.parts = width, height, about, []

    def text(self, x, y, words, kind="", anchor="middle"):
        """Write one line with its middle (or start) at x and its baseline at y."""
        name = f' class="{kind}"' if kind else ""
        self.parts.append(f'<text x="{x}" y="{y}" text-anchor="{anchor}"{name}>{escape(words)}</text>')

    def box(self, x, y, width, height, words="", kind="plain"):
        """Draw a box with up to three lines of text, parted by |."""
        shape = f'x="{x}" y="{y}" width="{width}" height="{height}" rx="4" class="{kind}"'
        self.parts.append(f"<rect {shape}/>")
        lines = words.split("|") if words else []
        for i, line in enumerate(lines):
            if len(line) * 6.6 > width:
                raise ValueError(f"{line!r} is too long for a box {width} wide")
            self.text(x + width / 2, round(y + height / 2 + 4.5 + 16 * (i - (len(lines) - 1) / 2), 1), line)

    def line(self, *points, kind="line"):
        """Draw a line through points (x, y)."""
        self.parts.append(f'<polyline points="{" ".join(f"{x},{y}" for x, y in points)}" class="{kind}"/>')

    def arrow(self, *points):
        """Draw a line with a tip at its end, whose last piece is level or upright."""
        (x0, y0), (x, y) = points[-2:]
        dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
        self.line(*points[:-1], (x - 5 * dx, y - 5 * dy))
        tip = [(x, y), (x - 8 * dx + 4 * dy, y - 8 * dy + 4 * dx), (x - 8 * dx - 4 * dy, y - 8 * dy - 4 * dx)]
        self.parts.append(f'<polygon points="{" ".join(f"{a},{b}" for a, b in tip)}" class="tip"/>')

    def curve(self, path, kind="blue"):
        """Draw an SVG path."""
        self.parts.append(f'<path d="{path}" class="{kind}"/>')

    def svg(self) -> str:
        """Return the picture as SVG."""
        size = f'width="{self.width}" height="{self.height}" viewBox="0 0 {self.width} {self.height}"'
        page = f'<rect width="{self.width}" height="{self.height}" rx="8" class="page"/>'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n<title>{escape(self.about)}</title>'
        return "\n".join([head, f"<style>{STYLE}</style>", page, *self.parts, "</svg>\n"])


def unified_embeddings():
    p = Picture(680, 230, "A wide table and two layers in training, a plain table afterwards")
    p.text(20, 28, "in training", "head", "start")
    p.box(20, 50, 74, 40, "token t")
    p.arrow((94, 70), (124, 70))
    p.box(124, 44, 166, 52, "table E|V rows of 8 D", "gone")
    p.arrow((290, 70), (320, 70))
    p.box(320, 44, 156, 52, "W2 gelu(W1 E[t])|shared by all tokens", "gone")
    p.arrow((476, 70), (506, 70))
    p.box(506, 50, 56, 40, "e(t), D")
    p.arrow((562, 70), (590, 70))
    p.box(590, 50, 70, 40, "gpt2ish")
    p.arrow((300, 96), (300, 148))
    p.text(312, 128, "fold: every row through the network, once", "soft", "start")
    p.text(20, 142, "afterwards", "head", "start")
    p.box(20, 160, 74, 40, "token t")
    p.arrow((94, 180), (210, 180))
    p.box(210, 154, 180, 52, "table of the e(t)|V rows of D")
    p.arrow((390, 180), (506, 180))
    p.box(506, 160, 56, 40, "e(t), D")
    p.arrow((562, 180), (590, 180))
    p.box(590, 160, 70, 40, "gpt2ish")
    return p


def unified_weights():
    p = Picture(680, 300, "A weight matrix with gains of its rows and columns, and four ways to come by such a vector")
    p.text(20, 28, "one linear layer", "head", "start")
    for i in range(7):
        p.box(64 + 24 * i, 50, 20, 20, "", "gone")
    for j in range(6):
        p.box(34, 80 + 24 * j, 20, 20, "", "gone")
        for i in range(7):
            p.box(64 + 24 * i, 80 + 24 * j, 20, 20)
        p.box(242, 80 + 24 * j, 20, 20, "", "gone")
    p.text(148, 44, "n: gains of columns", "soft")
    p.text(30, 244, "m: of rows", "soft", "start")
    p.text(148, 244, "W", "head")
    p.text(252, 244, "bias b", "soft")
    p.text(20, 276, "fold: multiply out, and only W and b are left", "soft", "start")
    p.text(300, 28, "where such a vector comes from", "head", "start")
    rows = [
        ("unified_weights", ["free"]),
        ("..._shared_bias", ["code e", "one S", "gelu", "own G"]),
        ("..._private", ["code e", "own A", "gelu", "own P"]),
        ("..._shared", ["code z", "Q, of many", "+ free u"]),
    ]
    for j, (name, parts) in enumerate(rows):
        y = 48 + 58 * j
        p.text(300, y + 22, name, "soft", "start")
        for i, part in enumerate(parts):
            x = 400 + (68 if len(parts) > 3 else 94) * i
            width = 54 if len(parts) > 3 else 80
            p.box(x, y, width, 34, part, "gone")
            if i:
                p.arrow((x - 14, y + 17), (x, y + 17))
    return p


def sacrificial_training():
    p = Picture(680, 250, "Much more in training than afterwards")
    p.text(130, 28, "in training", "head")
    p.box(30, 44, 200, 44, "wide table, two layers", "gone")
    p.box(30, 92, 200, 44, "codes z and matrices Q:|gains and biases", "gone")
    p.box(30, 140, 200, 44, "W of each layer, positions")
    p.box(30, 188, 200, 36, "combined_all: alpha, beta", "new")
    p.arrow((230, 132), (430, 132))
    p.text(330, 122, "fold()", "head")
    p.text(330, 152, "the same logits", "soft")
    p.text(530, 84, "afterwards", "head")
    p.box(430, 98, 200, 76, "a table (V, D), and W and b|of each layer: gpt2ish")
    p.box(430, 178, 200, 36, "combined_all: alpha, beta", "new")
    p.text(330, 240, "blue depends on the text and so has to stay", "soft")
    return p


def attention():
    p = Picture(680, 260, "Attention with a norm, a term for the distance, and a temperature")
    for y, name in ((40, "q"), (110, "k"), (180, "v")):
        p.box(30, y, 60, 40, name)
    p.arrow((90, 60), (220, 60))
    p.arrow((90, 130), (250, 130), (250, 90))
    p.box(220, 40, 130, 50, "q_i . k_j + r_ij")
    p.box(380, 40, 110, 50, "/ s_i", "new")
    p.arrow((350, 65), (380, 65))
    p.arrow((490, 65), (520, 65))
    p.box(520, 40, 130, 50, "mask, softmax")
    p.box(300, 114, 150, 40, "r_ij = q_i . P_(i-j)", "new")
    p.arrow((320, 114), (320, 90))
    p.text(460, 138, "attention_position", "soft", "start")
    p.text(435, 32, "attention_focus", "soft")
    p.arrow((90, 200), (150, 200))
    p.box(150, 180, 140, 40, "LayerNorm by head", "new")
    p.text(220, 238, "attention_norm", "soft")
    p.arrow((290, 200), (520, 200))
    p.box(520, 180, 130, 40, "weighted sum of v")
    p.arrow((585, 90), (585, 180))
    return p


def residual_weights():
    p = Picture(680, 210, "The stream and the branch, each with a weight")
    p.text(20, 28, "one of the two additions of a block", "head", "start")
    p.box(20, 120, 60, 40, "x")
    p.arrow((80, 140), (440, 140))
    p.arrow((110, 140), (110, 70), (150, 70))
    p.box(150, 46, 130, 48, "norm, attention|or feed-forward")
    p.arrow((280, 70), (470, 70), (470, 118))
    p.text(300, 62, "y", "", "start")
    p.box(440, 118, 130, 44, "alpha x + beta y", "new")
    p.arrow((570, 140), (640, 140))
    p.box(250, 164, 140, 36, "z of x and y, or free", "new")
    p.arrow((390, 182), (500, 182), (500, 162))
    p.text(404, 198, "sigmoid, 0.4 to 1.5", "soft", "start")
    return p


def memory():
    p = Picture(680, 322, "Cells that every token looks up, and where they stand")
    p.text(20, 28, "a lookup", "head", "start")
    p.box(20, 60, 90, 40, "a token's x")
    p.arrow((110, 80), (150, 80))
    p.box(150, 60, 70, 40, "query")
    p.arrow((220, 80), (262, 80))
    for i in range(5):
        p.box(262, 46 + 26 * i, 62, 22, "K V", "new")
    p.text(293, 194, "cells, learned:", "soft")
    p.text(293, 210, "the same for all texts", "soft")
    p.arrow((324, 80), (360, 80))
    p.box(360, 60, 90, 40, "mixture of V")
    p.arrow((450, 80), (490, 80))
    p.box(490, 60, 60, 40, "out")
    p.text(20, 240, "where it stands", "head", "start")
    rows = [
        ("neural_memory", ["B", "M", "B", "M"]),
        ("memory_blocks", ["B", "N", "N", "B"]),
    ]
    for j, (name, blocks) in enumerate(rows):
        p.text(20, 266 + 30 * j, name, "soft", "start")
        for i, block in enumerate(blocks):
            p.box(130 + 34 * i, 250 + 30 * j, 28, 24, block, "new" if block in "MN" else "plain")
    p.text(320, 266, "memory_linear: each linear layer asks the one memory", "soft", "start")
    p.text(320, 296, "memory_experts: W x + b + a mixture of its own", "soft", "start")
    return p


def recurrent_training():
    p = Picture(680, 220, "All tokens of a layer, or all layers of a token")
    for left, name, down in (
        (40, "gpt2ish: a layer takes all tokens", False),
        (380, "recurrent: a token takes all layers", True),
    ):
        p.text(left, 28, name, "head", "start")
        for token in range(5):
            for layer in range(3):
                p.box(left + 48 * token, 130 - 44 * layer, 38, 32)
            p.text(left + 19 + 48 * token, 184, f"t = {token + 1}", "soft")
        if not down:
            for layer in range(3):
                p.arrow((left - 8, 146 - 44 * layer), (left + 240, 146 - 44 * layer))
        else:
            for token in range(5):
                p.arrow((left + 19 + 48 * token, 168), (left + 19 + 48 * token, 38))
    p.text(40, 208, "3 steps of work, each wide", "soft", "start")
    p.text(380, 208, "5 times 3 steps, each narrow; the same function", "soft", "start")
    return p


def rank_promotion():
    p = Picture(680, 240, "Windows on levels of ever fewer items")
    levels = [
        (170, "level 0: the tokens", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [7, 8, 9]),
        (110, "level 1: promoted", [1, 2, 4, 5, 7, 9], [5, 7, 9]),
        (50, "level 2: promoted again", [2, 5, 9], [2, 5, 9]),
    ]
    for y, name, held, seen in levels:
        p.text(20, y + 20, name, "soft", "start")
        for i in held:
            p.box(180 + 36 * i, y, 28, 30, "", "new" if i in seen else "plain")
    for i in (1, 2, 4, 5, 7, 9):
        p.arrow((194 + 36 * i, 170), (194 + 36 * i, 140))
    for i in (2, 5, 9):
        p.arrow((194 + 36 * i, 110), (194 + 36 * i, 80))
    p.box(566, 96, 98, 58, "the newest|token's query")
    for y in (65, 125, 185):
        p.line((540, y), (552, y), (552, 125))
    p.arrow((552, 125), (566, 125))
    p.text(180, 224, "blue: the windows, all that the newest token reads, however long the text", "soft", "start")
    return p


def pldr():
    p = Picture(680, 230, "An operator between query and key, made of all queries")
    steps = [
        (20, 116, "density|D = sum of q'q"),
        (150, 96, "network|A"),
        (260, 130, "metric tensor|A_LM = Z silu(Z)"),
        (404, 108, "potential|P = A_LM^p"),
        (526, 134, "energy-curvature|G = a P + ba"),
    ]
    p.text(20, 28, "for each head, matrices of head width", "head", "start")
    for i, (x, width, words) in enumerate(steps):
        p.box(x, 48, width, 54, words, "new")
        if i:
            p.arrow((x - 14, 75), (x, 75))
    p.box(20, 160, 60, 40, "q")
    p.arrow((50, 160), (50, 102))
    p.arrow((80, 180), (330, 180))
    p.box(330, 160, 150, 40, "q G k' / sqrt(dk)")
    p.arrow((593, 102), (593, 130), (405, 130), (405, 160))
    p.arrow((480, 180), (520, 180))
    p.box(520, 160, 140, 40, "mask, softmax, v")
    p.text(100, 172, "plain attention: G is the identity", "soft", "start")
    return p


def time_arrow():
    p = Picture(680, 270, "The same text, forwards and backwards")
    rows = [
        (40, "gpt2ish", ["BOS", "the", "cat", "sat"], ["the", "cat", "sat", "."], "plain"),
        (120, "reverse_time", ["BOS", ".", "sat", "cat"], [".", "sat", "cat", "the"], "plain"),
        (200, "both_ways", ["fwd", "the", "cat", "sat"], ["the", "cat", "sat", "."], "new"),
    ]
    for y, name, read, told, kind in rows:
        p.text(20, y + 22, name, "head", "start")
        p.text(128, y + 14, "reads", "soft", "start")
        p.text(128, y + 48, "predicts", "soft", "start")
        for i, (a, b) in enumerate(zip(read, told, strict=True)):
            p.box(190 + 58 * i, y, 48, 22, a, kind if i == 0 else "plain")
            p.arrow((214 + 58 * i, y + 22), (214 + 58 * i, y + 34))
            p.box(190 + 58 * i, y + 34, 48, 22, b, "new" if y == 120 else "plain")
    for i, (a, b) in enumerate(zip(["bwd", ".", "sat", "cat"], [".", "sat", "cat", "the"], strict=True)):
        p.box(440 + 58 * i, 200, 48, 22, a, "new" if i == 0 else "plain")
        p.arrow((464 + 58 * i, 222), (464 + 58 * i, 234))
        p.box(440 + 58 * i, 234, 48, 22, b)
    p.text(440, 62, "each row adds up to -ln P(the text):", "soft", "start")
    p.text(440, 80, "one probability, factored twice", "soft", "start")
    p.text(440, 142, "so a gap between the losses is a gap", "soft", "start")
    p.text(440, 160, "in what was learned", "soft", "start")
    return p


def hidden_and_moved():
    p = Picture(680, 260, "Tokens hidden, and tokens read in another order")
    p.text(20, 28, "bert", "head", "start")
    for i, word in enumerate(["the", "cat", "[MASK]", "on", "it"]):
        p.box(20 + 62 * i, 100, 54, 26, word, "new" if word == "[MASK]" else "plain")
    for x in (47, 109, 233, 295):
        p.line((x, 100), (x, 82), (171, 82))
    p.arrow((171, 82), (171, 68))
    p.box(144, 42, 54, 26, "sat", "new")
    p.text(20, 156, "a hidden token, from both sides", "soft", "start")
    p.text(20, 174, "(15% of them have a loss)", "soft", "start")
    p.text(370, 28, "permute: which position is read when", "head", "start")
    orders = [
        ("forward", [0, 1, 2, 3, 4, 5, 6]),
        ("backward", [6, 5, 4, 3, 2, 1, 0]),
        ("middle_out", [3, 2, 4, 1, 5, 0, 6]),
        ("end_in", [0, 6, 1, 5, 2, 4, 3]),
        ("even_odd", [0, 2, 4, 6, 1, 3, 5]),
    ]
    for j, (name, order) in enumerate(orders):
        y = 46 + 38 * j
        p.text(370, y + 19, name, "soft", "start")
        for i, position in enumerate(order):
            p.box(450 + 30 * i, y, 26, 28, str(position), "new" if i == 0 else "plain")
    p.text(450, 248, "blue: predicted first, from the BOS token alone", "soft")
    return p


def kan():
    p = Picture(680, 230, "Weights on the edges, or functions")
    left, right = [70, 120, 170], [95, 145]
    for x, name, kind in (
        (40, "gpt2ish: a number on each edge", "line"),
        (370, "kan: a function on each edge", "blue"),
    ):
        p.text(x - 10, 28, name, "head", "start")
        for y in left:
            for z in right:
                p.line((x + 24, y), (x + 176, z), kind=kind)
        for y in left:
            p.box(x, y - 12, 24, 24, "x")
        for z in right:
            p.box(x + 176, z - 12, 24, 24, "y")
    p.text(250, 100, "sum, then GELU", "soft", "start")
    p.text(580, 100, "sum only", "soft", "start")
    p.box(428, 40, 60, 36, "", "new")
    p.curve("M432,68 C446,68 444,46 456,50 S470,72 484,44")
    p.box(428, 176, 60, 36, "", "new")
    p.curve("M432,206 C444,206 452,206 460,196 S474,182 484,180")
    p.text(500, 200, "silu and cubic splines", "soft", "start")
    p.text(500, 62, "phi(x)", "soft", "start")
    return p


def recurrent_layers():
    p = Picture(680, 250, "Who decides what the state keeps")
    panels = [
        (20, "gru, lstm", "the gates see x and h", True, "h'"),
        (245, "mingru", "the gates see x only", False, "h'"),
        (470, "ssm", "x decides; H is a matrix", False, "H'"),
    ]
    for x, name, words, looped, state in panels:
        p.text(x, 28, name, "head", "start")
        p.box(x, 60, 40, 40, state.strip("'"), "plain")
        p.arrow((x + 40, 80), (x + 140, 80))
        p.box(x + 140, 60, 40, 40, state, "plain")
        p.box(x + 60, 126, 70, 36, "gates", "new")
        p.arrow((x + 95, 126), (x + 95, 84))
        p.box(x + 75, 190, 40, 30, "x")
        p.arrow((x + 95, 190), (x + 95, 162))
        if looped:
            p.arrow((x + 20, 100), (x + 20, 144), (x + 60, 144))
        p.text(x, 50, words, "soft", "start")
    p.text(20, 240, "one token after the other", "soft", "start")
    p.text(245, 240, "linear in the state: all tokens at once, by a scan over chunks", "soft", "start")
    return p


def baselines():
    p = Picture(680, 300, "What differs between the baselines")
    columns = [("", 96), ("gpt2ish", 140), ("llama2", 140), ("modern", 160)]
    rows = [
        ("norm", "LayerNorm", "RMSNorm", "RMSNorm, no gains"),
        ("positions", "learned", "rotary", "rotary"),
        ("attention", "plain", "plain", "QK-norm, times 1.2"),
        ("feed-forward", "GELU", "SwiGLU", "squared ReLU"),
        ("head", "plain, with bias", "plain", "capped: 15 tanh(z/15)"),
        ("optimizer", "AdamW", "AdamW", "Muon, its own recipe"),
    ]
    x = 24
    for i, (name, width) in enumerate(columns):
        p.text(x if i == 0 else x + width / 2, 30, name, "head", "start" if i == 0 else "middle")
        for j, row in enumerate(rows):
            y = 44 + 40 * j
            if i == 0:
                p.text(x, y + 21, row[0], "soft", "start")
            else:
                changed = i > 1 and row[i] != row[i - 1]
                p.box(x, y, width, 32, row[i], "new" if changed else "plain")
        x += width + 24
    return p


DRAWINGS = (
    unified_embeddings,
    unified_weights,
    sacrificial_training,
    attention,
    residual_weights,
    memory,
    recurrent_training,
    rank_promotion,
    pldr,
    time_arrow,
    hidden_and_moved,
    kan,
    recurrent_layers,
    baselines,
)


def drawn() -> dict[str, str]:
    """Return the SVG of each page by the page's name."""
    return {draw.__name__: draw().svg() for draw in DRAWINGS}


if __name__ == "__main__":
    for name, svg in drawn().items():
        (Path(__file__).parent / f"{name}.svg").write_text(svg, encoding="utf-8")
