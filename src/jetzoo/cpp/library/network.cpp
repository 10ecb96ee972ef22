#include "network.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "jetzoo.h"

constexpr int32_t MOST_LAYERS = 256, WIDEST = 1 << 14, ANY = 0;

static void require(bool condition) {
    if (!condition) throw Error{JETZOO_BAD_FILE};
}

static int32_t round_up(int32_t n, int32_t to) { return (n + to - 1) / to * to; }

void Head::read(Reader& reader, int32_t inputs, int32_t outputs) {
    widest = inputs;
    layers.resize(reader.integer(1, MOST_LAYERS));
    for (Layer& layer : layers) {
        layer.norm = reader.integer(0, 1);
        layer.relu = reader.integer(0, 1);
        layer.inputs = reader.integer(inputs, inputs);
        layer.outputs = reader.integer(1, WIDEST);
        layer.eps = reader.number();
        if (layer.norm) require(layer.outputs == inputs);
        layer.weight = reader.array<float>(int64_t(layer.norm ? 1 : inputs) * layer.outputs);
        layer.bias = reader.array<float>(layer.outputs);
        inputs = layer.outputs;
        widest = std::max(widest, inputs);
    }
    require(inputs == outputs);
}

float* Head::compute(float* x, float* other) const {
    for (const Layer& layer : layers) {
        if (layer.norm) {
            double mean = 0, variance = 0;
            for (int c = 0; c < layer.inputs; c++) mean += x[c];
            mean /= layer.inputs;
            for (int c = 0; c < layer.inputs; c++) variance += (x[c] - mean) * (x[c] - mean);
            const double inverse = 1 / std::sqrt(variance / layer.inputs + layer.eps);
            for (int c = 0; c < layer.inputs; c++)
                x[c] = float((x[c] - mean) * inverse) * layer.weight[c] + layer.bias[c];
            continue;
        }
        std::copy(layer.bias, layer.bias + layer.outputs, other);
        for (int c = 0; c < layer.inputs; c++) {
            const float* row = layer.weight + int64_t(c) * layer.outputs;
            for (int m = 0; m < layer.outputs; m++) other[m] += x[c] * row[m];
        }
        if (layer.relu)
            for (int m = 0; m < layer.outputs; m++) other[m] = std::max(other[m], 0.f);
        std::swap(x, other);
    }
    return x;
}

Network::Network(const char* path, const Kernels& kernels)
    : file(path), reader(file), inputs(reader), kernels(kernels) {
    classes.resize(reader.integer(1, 1024));
    for (const char*& name : classes) name = reader.text();
    kind = Kind(reader.integer(0, KINDS - 1));
    if (kind == PART)
        read_part();
    else
        read_graph();
    head.read(reader, width, classes.size());
    require(reader.at_end());
}

// The numbers of a structure come first, then what it points to; both in the order of its fields.

// A layer of a known number of outputs, or of any.
DenseWeights Network::dense(int32_t inputs, int32_t outputs) {
    DenseWeights layer;
    layer.m = reader.integer(ROWS, WIDEST);
    require(layer.m == (outputs == ANY ? round_up(layer.m, ROWS) : round_up(outputs, ROWS)));
    layer.k = reader.integer(1, WIDEST);
    layer.bytes = reader.integer(0, kind == PART ? 2 : 0);
    layer.input_scale = reader.number();
    layer.input_zero = reader.number();
    // Widths of hidden layers may have been rounded up.
    require(layer.k <= round_up(inputs, 4) && layer.k > inputs - ROWS);
    require(!layer.bytes || layer.k % 4 == 0);
    if (layer.bytes)
        layer.weight = reader.array<int8_t>(int64_t(layer.m) * layer.k);
    else
        layer.weight = reader.array<float>(int64_t(layer.m) * layer.k);
    layer.bias = reader.array<float>(layer.m);
    layer.scale = reader.array<float>(layer.bytes ? layer.m : 0);
    layer.offset = reader.array<float>(layer.bytes ? layer.m : 0);
    return layer;
}

// Layers one after the other.
const DenseWeights* Network::dense_layers(int32_t count, int32_t inputs, int32_t outputs) {
    layers.emplace_back();
    require(reader.integer(count, count) == count);
    for (int32_t i = 0; i < count; i++) {
        layers.back().push_back(dense(inputs, ANY));
        inputs = layers.back().back().m;
    }
    require(count == 0 || outputs == ANY || inputs == round_up(outputs, ROWS));
    return layers.back().data();
}

FeedForwardWeights Network::feed_forward(int32_t dim) {
    FeedForwardWeights f;
    f.eps_attn = reader.number();
    f.eps_fc1 = reader.number();
    f.eps_fc2 = reader.number();
    f.out = dense(dim, dim);
    f.fc1 = dense(dim, ANY);
    f.fc2 = dense(f.fc1.m, dim);
    for (const float** vector : {&f.scale, &f.shift, &f.w_resid, &f.bias})
        *vector = reader.array<float>(dim);
    return f;
}

void Network::read_part() {
    NetworkWeights& net = part;
    width = net.dim = reader.integer(ROWS, WIDEST);
    net.num_heads = reader.integer(1, 56);
    net.num_features = reader.integer(inputs.width(FEATURES), inputs.width(FEATURES));
    net.num_embed = reader.integer(0, MOST_LAYERS);
    net.num_pair = reader.integer(0, MOST_LAYERS);
    net.num_blocks = reader.integer(1, MOST_LAYERS);
    net.num_cls_blocks = reader.integer(1, MOST_LAYERS);
    net.widest = reader.integer(net.dim, 2 * WIDEST);
    net.pair_activated = reader.integer(0, 1);
    net.self_pairs = reader.integer(0, 1);
    const int32_t dim = net.dim, heads = net.num_heads;
    require(dim % heads == 0 && dim / heads % ROWS == 0 && inputs.width(VECTORS) == 4);
    require(net.num_embed > 0 || net.num_features == dim);
    net.scale = reader.array<float>(net.num_features);
    net.shift = reader.array<float>(net.num_features);
    net.embed = dense_layers(net.num_embed, net.num_features, dim);
    net.embed_eps = reader.array<float>(net.num_embed);
    net.pair = dense_layers(net.num_pair, 4, heads);
    for (int32_t i = 0; i < net.num_embed; i++) require(net.embed[i].m <= net.widest);
    for (int32_t i = 0; i < net.num_pair; i++) require(net.pair[i].m <= net.widest);
    blocks.resize(reader.integer(net.num_blocks, net.num_blocks));
    for (ParticleBlockWeights& block : blocks) {
        block.eps = reader.number();
        block.qkv = dense(dim, 3 * dim);
        block.rest = feed_forward(dim);
    }
    cls_blocks.resize(reader.integer(net.num_cls_blocks, net.num_cls_blocks));
    for (ClassBlockWeights& block : cls_blocks) {
        block.eps = reader.number();
        block.query = dense(dim, dim);
        for (bool keys : {true, false}) {
            layers.emplace_back();
            require(reader.integer(heads, heads) == heads);
            for (int32_t h = 0; h < heads; h++)
                layers.back().push_back(keys ? dense(dim / heads, dim) : dense(dim, dim / heads));
            (keys ? block.key : block.value) = layers.back().data();
        }
        block.rest = feed_forward(dim);
    }
    net.blocks = blocks.data();
    net.cls_blocks = cls_blocks.data();
    net.cls_token = reader.array<float>(dim);
}

void Network::read_graph() {
    GraphWeights& net = graph;
    net.num_points = reader.integer(inputs.width(POINTS), inputs.width(POINTS));
    net.num_features = reader.integer(inputs.width(FEATURES), inputs.width(FEATURES));
    net.num_blocks = reader.integer(1, MOST_LAYERS);
    net.has_fusion = reader.integer(0, 1);
    net.scale = reader.array<float>(net.num_features);
    net.shift = reader.array<float>(net.num_features);
    edge_blocks.resize(reader.integer(net.num_blocks, net.num_blocks));
    int32_t channels = net.num_features, all = 0;
    for (EdgeBlockWeights& block : edge_blocks) {
        block.neighbours = reader.integer(1, 1024);
        block.num_layers = reader.integer(0, MOST_LAYERS);
        block.has_shortcut = reader.integer(0, 1);
        block.first = dense(channels, ANY);
        require(block.first.m % (2 * ROWS) == 0);
        block.layers = dense_layers(block.num_layers, block.first.m / 2, ANY);
        const int32_t inputs = channels;
        channels = block.num_layers ? block.layers[block.num_layers - 1].m : block.first.m / 2;
        block.shortcut = dense_layers(block.has_shortcut, inputs, channels);
        require(block.has_shortcut || inputs == channels);
        all += channels;
    }
    net.blocks = edge_blocks.data();
    net.fusion = dense_layers(net.has_fusion, all, ANY);
    width = net.has_fusion ? net.fusion->m : channels;
}

void Network::predict(const float* const* raw, int64_t num_particles, float* scores,
                      Memory& memory) const {
    const Inputs::Columns jet =
        inputs.compute(raw, num_particles, memory.columns, memory.inputs);
    if (!jet.finite) {
        std::fill(scores, scores + classes.size(), std::numeric_limits<float>::quiet_NaN());
        return;
    }
    float* x = memory.head.numbers<float>(2 * head.widest);
    if (kind == PART) {
        int32_t* positions = memory.positions.numbers<int32_t>(jet.n + 1);
        for (int64_t i = 0; i < jet.n; i++) positions[i] = i;
        JetArguments arguments{};
        arguments.batch = 1;
        arguments.length = jet.n;
        arguments.features = jet.of[FEATURES];
        arguments.vectors = jet.of[VECTORS];
        arguments.out = x;
        Jet only{0, 0, int32_t(jet.n), positions, 0, true};
        kernels.part(part, arguments, only, memory.work);
    } else {
        kernels.graph(graph, {jet.n, jet.of[POINTS], jet.of[FEATURES], x}, memory.work);
    }
    const float* logits = head.compute(x, x + head.widest);
    // Without std::max, which takes a NaN for a small number.
    float largest = logits[0], total = 0;
    for (size_t c = 1; c < classes.size(); c++)
        if (logits[c] > largest) largest = logits[c];
    for (size_t c = 0; c < classes.size(); c++) total += scores[c] = std::exp(logits[c] - largest);
    for (size_t c = 0; c < classes.size(); c++) scores[c] /= total;
}
