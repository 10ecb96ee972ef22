// A trained network in a weights file.
#pragma once
#include <list>
#include <vector>

#include "file.h"
#include "inputs.h"
#include "kernels.h"

// The layers after the kernels: logits from what they give.
class Head {
    struct Layer {
        int32_t inputs, outputs, norm, relu;  // a layer norm, or a dense layer
        float eps;
        const float *weight, *bias;  // (inputs, outputs), (outputs); of a norm (outputs) both
    };
    std::vector<Layer> layers;

  public:
    int32_t widest = 0;

    void read(Reader& reader, int32_t inputs, int32_t outputs);
    // x holds the input, and the result is in x or `other`, as is returned; both are `widest` long.
    float* compute(float* x, float* other) const;
};

// The memory of one thread.
struct Memory {
    Workspace work;
    Buffer columns, inputs, positions, head;
};

class Network {
    File file;
    Reader reader;

  public:
    const Inputs inputs;
    std::vector<const char*> classes;
    const Kernels& kernels;

    Network(const char* path, const Kernels& kernels);
    const char* description() const { return file.description(); }
    // Probabilities of the classes.
    void predict(const float* const* raw, int64_t num_particles, float* scores,
                 Memory& memory) const;

  private:
    enum Kind { PART, GRAPH, KINDS };
    Kind kind;
    int32_t width;  // of what the kernels give
    NetworkWeights part{};
    GraphWeights graph{};
    Head head;
    // What the weights point to, besides the file.
    std::list<std::vector<DenseWeights>> layers;
    std::vector<ParticleBlockWeights> blocks;
    std::vector<ClassBlockWeights> cls_blocks;
    std::vector<EdgeBlockWeights> edge_blocks;

    void read_part();
    void read_graph();
    DenseWeights dense(int32_t inputs, int32_t outputs);
    const DenseWeights* dense_layers(int32_t count, int32_t inputs, int32_t outputs);
    FeedForwardWeights feed_forward(int32_t dim);
};
