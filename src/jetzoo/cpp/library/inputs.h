// From the raw variables of a jet to the inputs of a network, as the data config says.
#pragma once
#include <vector>

#include "file.h"
#include "workspace.h"

// What an instruction does with earlier columns; jetzoo.cpp.formulas has the same list.
enum Operation {
    CONSTANT, ADD, SUBTRACT, MULTIPLY, DIVIDE, NEGATE, EQUAL, NOT_EQUAL, LESS, LESS_EQUAL, HYPOT,
    ARCTAN2, MAXIMUM, MINIMUM, LOG, LOG1P, EXP, SQRT, SQUARE, ABS, TANH, SIN, COS, SINH, OPERATIONS
};

enum Group { POINTS, FEATURES, VECTORS, MASK, GROUPS };

class Inputs {
  public:
    struct Variable {
        const char* name;
        bool per_particle;
    };
    std::vector<Variable> variables;

    explicit Inputs(Reader& reader);
    int width(Group group) const { return groups[group].size(); }

    // Numbers of a jet in rows of n, one for each variable of each group: only real particles, and
    // at most as many as the data config says.
    struct Columns {
        int64_t n;
        const float* of[GROUPS];
        bool finite;  // what was given
    };
    Columns compute(const float* const* raw, int64_t num_particles, Buffer& columns,
                    Buffer& inputs) const;

  private:
    struct Instruction {
        Operation operation;
        int32_t a, b;  // columns
        float constant;
    };
    struct Input {  // (x - center) * scale within low ... high, or x
        int32_t column, standardised;
        float center, scale, low, high;

        float of(float x) const;
    };
    int64_t longest;
    std::vector<Instruction> instructions;
    std::vector<Input> groups[GROUPS];
};
