"""Every gradient written by hand, alone, by ``torch.autograd.gradcheck``: central differences in float64."""

import pytest
import torch
from e3nn import o3

from egraff_utils import models
from egraff_utils.models.frozen import (
    allegro,
    contraction,
    geometry,
    mace,
    messages,
    nequip,
    operators,
    torchmd_net_gradient,
    torchmd_net_messages,
)

ATOMS, PAIRS = 3, 4
CENTRE, NEIGHBOUR = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 2, 2, 2])  # the last is an image
TYPES = torch.tensor([0, 1, 1])


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def check(forward, backward, *inputs):
    """``forward(*inputs)`` gives outputs and what is kept; ``backward(kept, *slopes)``, gradients."""

    class ByHand(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *given):
            outputs, ctx.kept = forward(*given)
            return tuple(outputs)

        @staticmethod
        def backward(ctx, *slopes):
            return tuple(backward(ctx.kept, *slopes))

    inputs = [x.clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(ByHand.apply, inputs, atol=1e-7, rtol=1e-6)


def frozen(name, **options):
    """A frozen network of two elements whose biases are not zero, as they are before training."""
    torch.manual_seed(0)
    force_field = models.build(name, "tiny", [1, 8], dtype=torch.float64, **options).eval()
    for parameter in force_field.requires_grad_(False).parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return force_field.as_frozen()


def edges():
    """Neighbour and centre of both edges of every pair, side by side."""
    ends = torch.stack([CENTRE, NEIGHBOUR], dim=1)
    return ends.flip(1).flatten(), ends.flatten()


def padded(x, like):
    return torch.nn.functional.pad(x, (0, like.shape[1] - x.shape[1]))


# what engines share


@pytest.mark.parametrize("width", [3, 200])
def test_times(width):
    constants = operators.both(random(width, 2))
    check(
        lambda x: ([operators.times(x, constants[0])], None),
        lambda _, slope: [operators.times(slope, constants[1])],
        random(2, width),
    )


BASIS = geometry.RadialBasis(torch.tensor([0.6, 1.3, 1.9], dtype=torch.float64), 0.7, 4.0, 6.0)
LENGTHS = torch.tensor([[0.9], [2.1], [3.97], [4.5]], dtype=torch.float64)  # the last beyond the cutoff
VECTORS = torch.nn.functional.normalize(random(PAIRS, 3)) * LENGTHS


def test_vectors():
    def forward(vectors):
        values, *kept = geometry.polar(vectors, BASIS)
        return [values, kept[1].clone()], kept

    check(forward, lambda kept, *slopes: [geometry.on_vectors(*slopes, *kept)], VECTORS)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_harmonics(degree):
    harmonics = o3.SphericalHarmonics(list(range(degree + 1)), True, "component")
    matrices = geometry.couplings(harmonics, VECTORS)
    directions = VECTORS / LENGTHS
    parts = geometry.harmonics_by_degree(directions, matrices)
    torch.testing.assert_close(torch.cat(parts, 1), harmonics(directions))

    def forward(directions):
        parts = geometry.harmonics_by_degree(directions, matrices)
        return [torch.cat(parts, 1)], parts

    check(forward, lambda parts, slope: [geometry.on_directions(slope, parts, matrices)], directions)


@pytest.mark.parametrize("hidden", [0, 1, 2, 3])
def test_radial_networks(hidden):
    """Of two layers, with so many hidden layers each."""
    width = 3 if hidden else 5
    of = geometry.RadialNetworks(
        first=random(5, 6) if hidden else None,
        hidden=[random(2, 3, 3, seed=n) for n in range(hidden - 1)],
        last=[random(width, 4), random(width, 2)],
    )
    check(
        lambda radial: geometry.radial_weights(of, radial),
        lambda before, *slopes: [geometry.on_radial(of, list(slopes), before)],
        random(PAIRS, 5),
    )


@pytest.mark.parametrize("l_max", [0, 2])
def test_pairs(l_max):
    of = frozen("nequip", l_max=l_max, num_features=2).constants.geometry

    def forward(vectors):
        harmonics, weights, kept = geometry.of_pairs(of, vectors)
        return [harmonics, *weights], kept

    def backward(kept, on_harmonics, *on_weights):
        return [geometry.on_pairs(of, on_harmonics, list(on_weights), kept)]

    check(forward, backward, VECTORS)


@pytest.mark.parametrize("block", [1, 3, 100])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_messages(layer, block):
    """Of scalars alone, of all kinds, and to scalars alone; one pair a block, two blocks, one."""
    of = frozen("nequip", l_max=2, num_features=2, num_layers=3, parity=False).constants.layers[layer].sums
    of = of._replace(block=block)
    assert of.scalar == (layer == 2)
    assert (of.components == 1) == (layer == 0)
    weights = random(PAIRS, sum(of.widths))

    def forward(x, harmonics, weights):
        given = messages.Given(x, harmonics, weights, *edges())
        total, kept = messages.sum_messages(of, given)
        return [total], (given, kept)

    def backward(kept, slope):
        given, products = kept
        on_x, on_harmonics = torch.zeros_like(given.x), torch.zeros_like(given.harmonics)
        on_weights = messages.on_messages(of, given, products, slope, on_x, on_harmonics)
        return on_x, on_harmonics, on_weights

    x, harmonics = random(ATOMS, of.components, of.channels), random(PAIRS, len(of.coupling))
    check(forward, backward, x, harmonics, weights)


# NequIP


@pytest.fixture(scope="module", params=[True, False], ids=["both parities", "one parity"])
def nequip_layers(request):
    options = {"l_max": 1, "num_features": 2, "num_layers": 3, "parity": request.param}
    return frozen("nequip", **options).constants.layers


def test_nequip_linear_layers(nequip_layers):
    """To neighbours and to the atom itself, and from messages to what is activated."""
    before, layer, _ = nequip_layers
    one_hot = torch.eye(2, dtype=torch.float64)[TYPES][:, None, :, None]

    def forward(total, *features):
        near, own = nequip._enter(layer, list(features), one_hot)
        return [near, *nequip._leave(layer, total, own)], None

    def backward(_, on_near, *on_kinds):
        on_features = nequip._on_entered(layer, on_near, list(on_kinds), before.dims, one_hot)
        return nequip._on_messages(layer, list(on_kinds)), *on_features

    features = [random(ATOMS, size, 2) for size in before.dims]
    check(forward, backward, random(ATOMS, sum(layer.sizes)), *features)


def test_nequip_gates(nequip_layers):
    for layer in nequip_layers:
        kinds = [
            random(ATOMS, size, matrix[0].shape[1])
            for size, matrix in zip(layer.dims, layer.leave, strict=True)
        ]

        def forward(*kinds, layer=layer):
            features, activated = nequip._gated(layer, list(kinds))
            return [feature.clone() for feature in features], (list(kinds), activated)

        def backward(kept, *slopes, layer=layer):
            return nequip._on_gated(layer, list(slopes), *kept)

        check(forward, backward, *kinds)


# MACE


def mace_constants(**options):
    engine = frozen("mace", num_channels=2, hidden_l_max=1, l_max=2, **options)
    return mace.Atoms(torch.tensor([1, 8, 8]), engine).constants


@pytest.mark.parametrize("orders", [1, 2, 3, 4])
def test_mace_contraction(orders):
    layer = mace_constants(correlation=orders).layers[0]
    size = sum(len(matrix) * matrix.shape[2] for matrix in layer.mix)

    def forward(x):
        value, slopes = mace._contracted(layer, x)
        return [value.clone()], slopes

    check(forward, lambda kept, slope: [mace._on_contracted(layer, slope, kept)], random(ATOMS, size))


def test_mace_products_of_components():
    """All products of up to two of three components, which a contraction of order three needs."""
    steps = [
        [torch.tensor([0, 0, 0]), torch.tensor([0, 1, 2])],
        [torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 1, 2, 1, 2, 2])],
    ]
    of = contraction.OfContraction([], torch.ones(10, 1, 1), steps, [])
    a, b, c = x = random(3, 1, 1)
    expected = [a / a, a, b, c, a * a, a * b, a * c, b * b, b * c, c * c]
    torch.testing.assert_close(contraction._monomials(of, x), torch.stack(expected))


def test_mace_self_connection():
    of = mace_constants(correlation=2)
    layer, x = of.layers[1], random(ATOMS, 8)
    check(
        lambda x: ([mace._own(of, layer, x)], x),
        lambda x, slope: [padded(mace._on_own(of, layer, slope), x)],
        x,
    )


@pytest.mark.parametrize("matrices", [1, 3])
@pytest.mark.parametrize("added", [False, True])
def test_mace_linear_layers(matrices, added):
    of = [random(2, 3, 4, seed=n) if matrices > 1 else random(1, 3, 4) for n in range(matrices)]
    rows, columns = (sum(len(matrix) * matrix.shape[n] for matrix in of) for n in (1, 2))

    def forward(x, plus):
        return [mace._times(x, of, plus.clone() if added else None)], plus

    def backward(plus, slope):
        return mace._times(slope, mace._transposed(of), None), slope * added

    check(forward, backward, random(ATOMS, rows), random(ATOMS, columns))


@pytest.mark.parametrize("layer", [0, 1])
def test_mace_readouts(layer):
    layer = mace_constants(correlation=2).layers[layer]

    def forward(x, energy):
        found, hidden = mace._read(layer, x, energy)
        return [found], (x, hidden)

    def backward(kept, slope):
        x, hidden = kept
        return padded(mace._on_scalars(layer, slope, hidden), x), slope

    check(forward, backward, random(ATOMS, 8), random(ATOMS, 1))


# Allegro


@pytest.fixture(scope="module")
def allegro_constants():
    widths = {"num_scalar_features": 4, "num_tensor_features": 2, "two_body_width": 4, "latent_width": 4}
    return frozen("allegro", l_max=2, num_layers=2, **widths).constants


def test_allegro_hidden_layers():
    layers = [operators.both(random(3, 4)), operators.both(random(4, 5))]

    def forward(x):
        before, found = allegro._hidden(x, layers)
        return [found], before

    check(forward, lambda before, slope: [allegro._on_hidden(slope, before, layers)], random(PAIRS, 3))


def test_allegro_weighted_harmonics(allegro_constants):
    degrees = allegro_constants.degrees
    harmonics, weights = random(PAIRS, len(degrees)), random(PAIRS, 2 * (degrees[-1] + 1))

    def forward(harmonics, weights):
        return [allegro._weighted(harmonics, weights, degrees)], (harmonics, weights)

    def backward(kept, slope):
        on_harmonics = torch.zeros_like(kept[0])
        return on_harmonics, allegro._on_weights(slope, *kept, degrees, on_harmonics)

    check(forward, backward, harmonics, weights)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("layer", [0, 1])
def test_allegro_products(allegro_constants, layer, at_once, monkeypatch):
    monkeypatch.setattr(allegro, "at_once", lambda x, terms: at_once)
    product = allegro_constants.products[layer]

    def forward(x, y):
        return [allegro._summed(product, 2, [x, y, y])], (x, y)

    def backward(kept, slope):
        return [allegro._summed(product, role, [*kept, slope]) for role in (0, 1)]

    check(forward, backward, *(random(PAIRS, size, 2) for size in product.sizes[:2]))


def test_allegro_block(allegro_constants):
    """From radial functions and harmonics to energies, two edges of which have one centre."""
    of, pairs = allegro_constants, torch.tensor([1, 1, 2, 3])
    block = allegro.Block(VECTORS, pairs, CENTRE, ATOMS)
    radial, harmonics = random(PAIRS, len(of.radial)), random(PAIRS, len(of.degrees))

    def forward(radial, harmonics):
        energies, kept = allegro._energies(of, block, radial, harmonics)
        return [energies.sum()], (kept, harmonics)

    def backward(kept, slope):
        return [slope * gradient for gradient in allegro._slopes(of, block, *kept)]

    check(forward, backward, radial, harmonics)


# TorchMD-NET


@pytest.fixture(scope="module", params=[False, True], ids=["as published", "smooth"])
def torchmd(request):
    widths = {"num_layers": 2, "embedding_dimension": 4, "num_heads": 2, "num_rbf": 3}
    return frozen("torchmd_net", smooth_cutoff=request.param, **widths)


@pytest.fixture
def blocks(monkeypatch):
    """A pair a block, and the self loops with the last."""
    monkeypatch.setattr(torchmd_net_messages, "CACHE", 2**8)
    monkeypatch.setattr(operators, "compiled", lambda function, device: function)
    monkeypatch.setattr(operators, "in_threads", lambda function, calls: [function(*c) for c in calls])
    return torchmd_net_messages.Block.all_of(torch.stack([CENTRE, NEIGHBOUR]), random(ATOMS, 4))


@pytest.fixture
def one_block(blocks, monkeypatch):
    monkeypatch.setattr(torchmd_net_messages, "CACHE", 2**20)
    return torchmd_net_messages.Block.all_of(torch.stack([CENTRE, NEIGHBOUR]), random(ATOMS, 4))


def test_torchmd_lengths(torchmd):
    def forward(vectors):
        radial, found, kept = torchmd.lengths.forward(vectors)
        return [radial[:-1].clone(), found], kept

    check(forward, lambda kept, *slopes: [torchmd.lengths.backward(kept, *slopes)], VECTORS)


def test_torchmd_rows_of_messages(blocks):
    check(
        lambda pairs: ([torchmd_net_messages.to_messages(pairs, blocks)], None),
        lambda _, slope: [torchmd_net_messages.to_pairs(slope, blocks)],
        random(PAIRS, 4),
    )


def test_torchmd_embedding(torchmd):
    species, ends = torch.tensor([1, 8, 8]), torch.stack([CENTRE, NEIGHBOUR])

    def forward(radial, envelope):
        x, kept = torchmd.embedding.forward(species, ends, radial, envelope)
        return [x], (kept, radial, envelope)

    def backward(kept, slope):
        found = [torch.zeros_like(x) for x in kept[1:]]
        torchmd.embedding.backward(kept[0], slope, *found)
        return found

    check(forward, backward, random(PAIRS, 3), random(PAIRS, 1))


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("which", ["one_block", "blocks"])
def test_torchmd_messages(torchmd, layer, which, request):
    """Of the first layer, which meets no vectors, and of another; what is kept of blocks, or made anew."""
    blocks, constants = request.getfixturevalue(which), torchmd.layers[layer].constants
    columns = len(constants[0])
    assert columns == (12 if layer == 0 else 16)
    loop = random(1, 3)

    def forward(query, table, radial, geometry, *vectors):
        radial = torch.cat([radial, loop])
        given = torchmd_net_messages.Given(query, table, *vectors or [None], radial, geometry, *constants)
        total, kept = torchmd_net_gradient._total(given, blocks)
        return [total], (given, kept)

    def backward(kept, slope):
        given, kept = kept
        on_radial, on_geometry = torch.zeros_like(given.radial), torch.zeros_like(given.geometry)
        found = torchmd_net_gradient._slopes(given, blocks, kept, slope, on_radial, on_geometry)
        return *found[:2], on_radial[:-1], on_geometry, *found[2:]

    vectors = [random(ATOMS, 12)] if layer else []
    messages = 2 * PAIRS + ATOMS
    inputs = random(ATOMS, 4), random(ATOMS, columns), random(PAIRS, 3), random(messages, 4)
    check(forward, backward, *inputs, *vectors)


def test_torchmd_norm(torchmd):
    norm = torchmd.layers[0].norm

    def forward(x):
        found, kept = norm.forward(x)
        return [found], kept

    check(forward, lambda kept, slope: [norm.backward(kept, slope)], random(ATOMS, 4))


@pytest.mark.parametrize("layer", [0, 1])
def test_torchmd_updates(torchmd, layer):
    update = torchmd.layers[layer].update

    def forward(x, total, *vectors):
        *found, kept = update.forward(x, *vectors or [None], total)
        return [f.clone() for f in found], kept

    def backward(kept, on_x, on_vectors):
        on_total, own = update.backward(kept, on_x, on_vectors)
        return on_x, on_total, *([own] if layer else [])

    vectors = [random(ATOMS, 3, 4)] if layer else []
    check(forward, backward, random(ATOMS, 4), random(ATOMS, 16), *vectors)


@pytest.mark.parametrize("layer", [0, 1])
def test_torchmd_layers(torchmd, layer, blocks):
    loop, layer_, pairs = random(1, 3), torchmd.layers[layer], 2 * PAIRS + ATOMS

    def forward(x, radial, geometry, *vectors):
        radial = torch.cat([radial, loop])
        x, vectors, kept = layer_.forward(x, *vectors or [None], radial, geometry, blocks)
        return [x.clone(), vectors.clone()], (kept, radial, geometry)

    def backward(kept, on_x, on_vectors):
        on_radial, on_geometry = (torch.zeros_like(part) for part in kept[1:])
        on_x, own = layer_.backward(kept[0], on_x, on_vectors, on_radial, on_geometry)
        return on_x, on_radial[:-1], on_geometry, *([own] if layer else [])

    vectors = [random(ATOMS, 3, 4)] if layer else []
    check(forward, backward, random(ATOMS, 4), random(PAIRS, 3), random(pairs, 4), *vectors)


@pytest.mark.parametrize("part", ["gate", "last", "head"])
def test_torchmd_head(torchmd, part):
    of = torchmd.head if part == "head" else getattr(torchmd.head, part)
    scalars, channels = {"gate": (4, 4), "last": (2, 2), "head": (4, 4)}[part]

    def forward(x, vectors):
        found, kept = of.forward(x, vectors)
        return [found], kept

    check(forward, of.backward, random(ATOMS, scalars), random(ATOMS, 3, channels))
